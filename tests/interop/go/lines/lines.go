// Package lines has what the Go programs of tests/interop share; arguments and output are those of python/lines.py.
package lines

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	keys       = 50
	valueBytes = 100
	tick       = 2 * time.Millisecond
)

var (
	mutex  sync.Mutex
	output = bufio.NewWriter(os.Stdout)
)

// Say writes one line of words.
func Say(words ...any) {
	line := strings.ReplaceAll(fmt.Sprintln(words...), "\n", " ")
	mutex.Lock()
	defer mutex.Unlock()
	output.WriteString(strings.TrimRight(line, " ") + "\n")
	output.Flush()
}

// SayAssigned writes the partitions that a consumer has received.
func SayAssigned(partitions []int32) {
	slices.Sort(partitions)
	words := []any{"assigned"}
	for _, partition := range partitions {
		words = append(words, partition)
	}
	Say(words...)
}

// Key is the key of a record.
func Key(id int) string { return "key-" + strconv.Itoa(id%keys) }

// Value is the value of a record.
func Value(run string, id int) string {
	marked := fmt.Sprintf("%s:%d:%d:", run, id, id/keys)
	return marked + strings.Repeat(".", valueBytes-len(marked))
}

// Paced calls send for each record when it is due.
func Paced(count int, rate float64, send func(id int)) {
	started := time.Now()
	for id := range count {
		due := started.Add(time.Duration(float64(id) / rate * float64(time.Second)))
		for time.Now().Before(due) {
			time.Sleep(tick)
		}
		send(id)
	}
}

// UntilTerminated is a context that SIGTERM ends.
func UntilTerminated() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	return ctx
}

// Program is what a client can do.
type Program struct {
	Produce func(bootstrap []string, topic, run string, count int, rate float64) error
	Consume func(ctx context.Context, bootstrap []string, topic, group string) error
	Admin   func(bootstrap []string, topic string, partitions int) error
}

// Main runs what the arguments say.
func Main(program Program) {
	arguments := os.Args[1:]
	bootstrap := strings.Split(arguments[1], ",")
	var err error
	switch arguments[0] {
	case "produce":
		count, _ := strconv.Atoi(arguments[4])
		rate, _ := strconv.ParseFloat(arguments[5], 64)
		err = program.Produce(bootstrap, arguments[2], arguments[3], count, rate)
	case "consume":
		err = program.Consume(UntilTerminated(), bootstrap, arguments[2], arguments[3])
	case "admin":
		partitions, _ := strconv.Atoi(arguments[3])
		err = program.Admin(bootstrap, arguments[2], partitions)
	default:
		err = fmt.Errorf("unknown arguments %v", arguments)
	}
	if err != nil {
		Say("fatal", err)
		os.Exit(1)
	}
	Say("done")
}
