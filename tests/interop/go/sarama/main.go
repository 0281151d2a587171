// sarama.
package main

import (
	"context"
	"sync"
	"time"

	"fencepost/interop/lines"

	"github.com/IBM/sarama"
)

type sent struct {
	id int
	ms int64
}

func config() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.MaxWaitTime = 100 * time.Millisecond
	return config
}

func produce(bootstrap []string, topic, run string, count int, rate float64) error {
	config := config()
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Return.Successes = true
	config.Producer.Flush.Frequency = 5 * time.Millisecond
	config.Producer.Retry.Max = 1_000
	config.Producer.Retry.Backoff = 100 * time.Millisecond
	config.Net.MaxOpenRequests = 1 // sarama's condition for idempotence
	producer, err := sarama.NewAsyncProducer(bootstrap, config)
	if err != nil {
		return err
	}
	var outcomes sync.WaitGroup
	outcomes.Add(2)
	go func() {
		defer outcomes.Done()
		for message := range producer.Successes() {
			of := message.Metadata.(sent)
			lines.Say("ack", of.id, message.Partition, message.Offset, of.ms)
		}
	}()
	go func() {
		defer outcomes.Done()
		for failure := range producer.Errors() {
			lines.Say("fail", failure.Msg.Metadata.(sent).id, failure.Err)
		}
	}()
	lines.Paced(count, rate, func(id int) {
		producer.Input() <- &sarama.ProducerMessage{
			Topic:    topic,
			Key:      sarama.StringEncoder(lines.Key(id)),
			Value:    sarama.StringEncoder(lines.Value(run, id)),
			Metadata: sent{id, time.Now().UnixMilli()},
		}
	})
	producer.AsyncClose()
	outcomes.Wait()
	return nil
}

type member struct{ topic string }

func (m member) Setup(session sarama.ConsumerGroupSession) error {
	lines.SayAssigned(session.Claims()[m.topic])
	return nil
}

func (member) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case record, open := <-claim.Messages():
			if !open {
				return nil
			}
			lines.Say("record", record.Partition, record.Offset, string(record.Key), string(record.Value))
			session.MarkMessage(record, "")
		case <-session.Context().Done():
			return nil
		}
	}
}

func consume(ctx context.Context, bootstrap []string, topic, group string) error {
	config := config()
	if group == "-" {
		return consumeAll(ctx, bootstrap, topic, config)
	}
	config.Consumer.Offsets.AutoCommit.Interval = 500 * time.Millisecond
	config.Consumer.Group.Session.Timeout = 6 * time.Second
	config.Consumer.Group.Heartbeat.Interval = time.Second
	client, err := sarama.NewConsumerGroup(bootstrap, group, config)
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		if err := client.Consume(ctx, []string{topic}, member{topic}); err != nil && ctx.Err() == nil {
			lines.Say("note", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

func consumeAll(ctx context.Context, bootstrap []string, topic string, config *sarama.Config) error {
	consumer, err := sarama.NewConsumer(bootstrap, config)
	if err != nil {
		return err
	}
	defer consumer.Close()
	partitions, err := consumer.Partitions(topic)
	if err != nil {
		return err
	}
	lines.SayAssigned(partitions)
	var readers sync.WaitGroup
	for _, partition := range partitions {
		claim, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			return err
		}
		readers.Add(1)
		go func() {
			defer readers.Done()
			for record := range claim.Messages() {
				lines.Say("record", record.Partition, record.Offset, string(record.Key), string(record.Value))
			}
		}()
		go func() {
			<-ctx.Done()
			claim.AsyncClose()
		}()
	}
	readers.Wait()
	return nil
}

func admin(bootstrap []string, topic string, partitions int) error {
	client, err := sarama.NewClusterAdmin(bootstrap, config())
	if err != nil {
		return err
	}
	defer client.Close()
	detail := &sarama.TopicDetail{NumPartitions: int32(partitions), ReplicationFactor: -1}
	if err := client.CreateTopic(topic, detail, false); err != nil {
		return err
	}
	described, err := client.DescribeTopics([]string{topic})
	if err != nil {
		return err
	}
	lines.Say("topic", topic, len(described[0].Partitions))
	return nil
}

func main() { lines.Main(lines.Program{Produce: produce, Consume: consume, Admin: admin}) }
