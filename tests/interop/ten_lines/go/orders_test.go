package orders

import (
	"context"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// fencepost asks the cluster of 'fencepost serve-tests'.
func fencepost(t *testing.T, method, path, body string) {
	t.Helper()
	request, _ := http.NewRequest(method, os.Getenv("FENCEPOST_TEST_URL")+path, strings.NewReader(body))
	request.Header.Set("Authorization", "Bearer "+os.Getenv("FENCEPOST_TEST_TOKEN"))
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if said, _ := io.ReadAll(answer.Body); answer.StatusCode != 200 {
		t.Fatalf("%s %s: %s", method, path, said)
	}
}

// ten lines: begin
func TestOrdersSurviveALeaderKill(t *testing.T) {
	topic := "orders-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	fencepost(t, "POST", "/topics", `{"name": "`+topic+`"}`)
	brokers := strings.Split(os.Getenv("FENCEPOST_KAFKA_BOOTSTRAP"), ",")
	client, _ := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic))
	defer client.Close()
	for order := range 100 {
		if order == 50 {
			fencepost(t, "POST", "/processes/leader:"+topic+"-0/kill", "")
		}
		if err := client.ProduceSync(context.Background(), kgo.StringRecord(strconv.Itoa(order))).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	fencepost(t, "POST", "/topics/"+topic+"/check-exactly-once", "")
}

// ten lines: end
