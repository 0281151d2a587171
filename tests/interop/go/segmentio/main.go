// segmentio/kafka-go. It has no idempotent producer: a retry may write a batch again.
package main

import (
	"context"
	"strconv"
	"sync"
	"time"

	"fencepost/interop/lines"

	"github.com/segmentio/kafka-go"
)

func produce(bootstrap []string, topic, run string, count int, rate float64) error {
	writer := &kafka.Writer{
		Addr:         kafka.TCP(bootstrap...),
		Topic:        topic,
		Balancer:     &kafka.Hash{},
		RequiredAcks: kafka.RequireAll,
		BatchTimeout: 5 * time.Millisecond,
		MaxAttempts:  1_000,
		Transport:    &kafka.Transport{MetadataTTL: 500 * time.Millisecond}, // by default it learns of leaders every 6 s
		Async:        true,
	}
	var mutex sync.Mutex
	sent := make(map[string]int64, count)
	var pending sync.WaitGroup
	writer.Completion = func(messages []kafka.Message, err error) {
		for _, message := range messages {
			id := idOf(message)
			mutex.Lock()
			ms := sent[id]
			mutex.Unlock()
			if err != nil {
				lines.Say("fail", id, err)
			} else {
				lines.Say("ack", id, message.Partition, message.Offset, ms)
			}
			pending.Done()
		}
	}
	var failed error
	lines.Paced(count, rate, func(id int) {
		name := strconv.Itoa(id)
		mutex.Lock()
		sent[name] = time.Now().UnixMilli()
		mutex.Unlock()
		pending.Add(1)
		message := kafka.Message{
			Key:        []byte(lines.Key(id)),
			Value:      []byte(lines.Value(run, id)),
			WriterData: name,
		}
		if err := writer.WriteMessages(context.Background(), message); err != nil {
			failed = err
			pending.Done()
		}
	})
	pending.Wait()
	if err := writer.Close(); err != nil {
		return err
	}
	return failed
}

func idOf(message kafka.Message) string {
	id, _ := message.WriterData.(string)
	return id
}

func consume(ctx context.Context, bootstrap []string, topic, group string) error {
	if group == "-" {
		return consumeAll(ctx, bootstrap, topic)
	}
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers:           bootstrap,
		GroupID:           group,
		Topic:             topic,
		StartOffset:       kafka.FirstOffset,
		MaxWait:           100 * time.Millisecond,
		CommitInterval:    500 * time.Millisecond,
		SessionTimeout:    6 * time.Second,
		HeartbeatInterval: time.Second,
	})
	defer reader.Close()
	lines.SayAssigned(nil) // nothing tells what it receives, and when
	return read(ctx, reader)
}

func consumeAll(ctx context.Context, bootstrap []string, topic string) error {
	connection, err := kafka.Dial("tcp", bootstrap[0])
	if err != nil {
		return err
	}
	partitions, err := connection.ReadPartitions(topic)
	connection.Close()
	if err != nil {
		return err
	}
	var ids []int32
	var readers sync.WaitGroup
	for _, partition := range partitions {
		ids = append(ids, int32(partition.ID))
		reader := kafka.NewReader(kafka.ReaderConfig{
			Brokers:   bootstrap,
			Topic:     topic,
			Partition: partition.ID,
			MaxWait:   100 * time.Millisecond,
		})
		readers.Add(1)
		go func() {
			defer readers.Done()
			defer reader.Close()
			_ = read(ctx, reader)
		}()
	}
	lines.SayAssigned(ids)
	readers.Wait()
	return nil
}

func read(ctx context.Context, reader *kafka.Reader) error {
	for {
		record, err := reader.ReadMessage(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			lines.Say("note", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		lines.Say("record", record.Partition, record.Offset, string(record.Key), string(record.Value))
	}
}

func admin(bootstrap []string, topic string, partitions int) error {
	client := &kafka.Client{Addr: kafka.TCP(bootstrap...)}
	created, err := client.CreateTopics(context.Background(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: partitions, ReplicationFactor: -1}},
	})
	if err != nil {
		return err
	}
	if err := created.Errors[topic]; err != nil {
		return err
	}
	described, err := client.Metadata(context.Background(), &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return err
	}
	lines.Say("topic", topic, len(described.Topics[0].Partitions))
	return nil
}

func main() { lines.Main(lines.Program{Produce: produce, Consume: consume, Admin: admin}) }
