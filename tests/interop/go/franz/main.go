// franz-go.
package main

import (
	"context"
	"sync"
	"time"

	"fencepost/interop/lines"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const deliveryTimeout = 120 * time.Second

func produce(bootstrap []string, topic, run string, count int, rate float64) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap...),
		kgo.ProducerLinger(5*time.Millisecond),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
		kgo.MetadataMinAge(100*time.Millisecond), // by default it asks for the next leader only after 5 s
		kgo.StopProducerOnDataLossDetected(),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	var pending sync.WaitGroup
	lines.Paced(count, rate, func(id int) {
		sentMs := time.Now().UnixMilli()
		pending.Add(1)
		record := &kgo.Record{Topic: topic, Key: []byte(lines.Key(id)), Value: []byte(lines.Value(run, id))}
		client.Produce(context.Background(), record, func(sent *kgo.Record, err error) {
			defer pending.Done()
			if err != nil {
				lines.Say("fail", id, err)
				return
			}
			lines.Say("ack", id, sent.Partition, sent.Offset, sentMs)
		})
	})
	pending.Wait()
	return nil
}

func consume(ctx context.Context, bootstrap []string, topic, group string) error {
	options := []kgo.Opt{
		kgo.SeedBrokers(bootstrap...),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}
	if group != "-" {
		options = append(options,
			kgo.ConsumerGroup(group),
			kgo.SessionTimeout(6*time.Second),
			kgo.HeartbeatInterval(time.Second),
			kgo.AutoCommitInterval(500*time.Millisecond),
			kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, given map[string][]int32) {
				lines.SayAssigned(given[topic])
			}),
		)
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return err
	}
	defer client.Close()
	if group == "-" {
		described, err := kadm.NewClient(client).ListTopics(ctx, topic)
		if err != nil {
			return err
		}
		lines.SayAssigned(described[topic].Partitions.Numbers())
	}
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachRecord(func(record *kgo.Record) {
			lines.Say("record", record.Partition, record.Offset, string(record.Key), string(record.Value))
		})
	}
	return nil
}

func admin(bootstrap []string, topic string, partitions int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap...))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(context.Background(), int32(partitions), -1, nil, topic); err != nil {
		return err
	}
	described, err := admin.ListTopics(context.Background(), topic)
	if err != nil {
		return err
	}
	lines.Say("topic", topic, len(described[topic].Partitions))
	return nil
}

func main() { lines.Main(lines.Program{Produce: produce, Consume: consume, Admin: admin}) }
