import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** kafka-clients. Arguments and output are those of tests/interop/python/lines.py; a last argument "consumer" means KIP-848. */
public final class Interop {
    private static final int KEYS = 50;
    private static final int VALUE_BYTES = 100;
    private static final int DELIVERY_MS = 120_000;

    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "produce" -> produce(arguments[1], arguments[2], arguments[3],
                    Integer.parseInt(arguments[4]), Double.parseDouble(arguments[5]));
            case "consume" -> consume(arguments[1], arguments[2], arguments[3],
                    arguments.length > 4 ? arguments[4] : "classic");
            case "admin" -> admin(arguments[1], arguments[2], Integer.parseInt(arguments[3]));
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    private static void produce(String bootstrap, String topic, String run, int count, double rate) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        settings.put("enable.idempotence", true);
        settings.put("linger.ms", 5);
        settings.put("delivery.timeout.ms", DELIVERY_MS);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            long started = System.nanoTime();
            for (int id = 0; id < count; id++) {
                long due = started + (long) (id / rate * 1e9);
                while (System.nanoTime() < due) {
                    Thread.sleep(2);
                }
                int record = id;
                long sentMs = System.currentTimeMillis();
                producer.send(new ProducerRecord<>(topic, "key-" + id % KEYS, value(run, id)), (sent, error) -> {
                    if (error == null) {
                        say("ack " + record + " " + sent.partition() + " " + sent.offset() + " " + sentMs);
                    } else {
                        say("fail " + record + " " + error);
                    }
                });
            }
            producer.flush();
        }
        say("done");
    }

    private static void consume(String bootstrap, String topic, String group, String protocol) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        settings.put("auto.offset.reset", "earliest");
        settings.put("fetch.max.wait.ms", 100);
        settings.put("enable.auto.commit", !group.equals("-"));
        if (!group.equals("-")) {
            settings.put("group.id", group);
            settings.put("auto.commit.interval.ms", 500);
            settings.put("group.protocol", protocol);
            if (protocol.equals("classic")) {
                settings.put("session.timeout.ms", 6_000);
                settings.put("heartbeat.interval.ms", 1_000);
            }
        }
        var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
        var main = Thread.currentThread();
        var ended = new AtomicBoolean();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            ended.set(true);
            consumer.wakeup();
            try {
                main.join(10_000);
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
        }));
        if (group.equals("-")) {
            List<TopicPartition> places = consumer.partitionsFor(topic).stream()
                    .map(info -> new TopicPartition(topic, info.partition())).toList();
            consumer.assign(places);
            consumer.seekToBeginning(places);
            sayAssigned(places);
        } else {
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> places) {
                    say("revoked");
                }

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> places) {
                    sayAssigned(places);
                }
            });
        }
        try {
            while (!ended.get()) {
                for (var record : consumer.poll(Duration.ofMillis(100))) {
                    say("record " + record.partition() + " " + record.offset() + " " + record.key() + " " + record.value());
                }
            }
        } catch (WakeupException expected) {
            // SIGTERM
        } finally {
            consumer.close();
        }
        say("done");
    }

    private static void admin(String bootstrap, String topic, int partitions) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        try (Admin admin = Admin.create(settings)) {
            admin.createTopics(List.of(new NewTopic(topic, Optional.of(partitions), Optional.empty()))).all().get();
            var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            say("topic " + described.name() + " " + described.partitions().size());
        }
        say("done");
    }

    private static String value(String run, int id) {
        String marked = run + ":" + id + ":" + id / KEYS + ":";
        return marked + ".".repeat(VALUE_BYTES - marked.getBytes(StandardCharsets.UTF_8).length);
    }

    private static void sayAssigned(Collection<TopicPartition> places) {
        say("assigned " + places.stream().map(TopicPartition::partition).sorted().map(String::valueOf)
                .collect(Collectors.joining(" ")));
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
