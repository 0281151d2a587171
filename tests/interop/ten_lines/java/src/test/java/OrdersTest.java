import static org.junit.jupiter.api.Assertions.assertEquals;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Map;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;
import org.junit.jupiter.api.Test;

class OrdersTest {
  /** Asks the cluster of 'fencepost serve-tests'. */
  static void fencepost(String method, String path, String body) throws Exception {
    var request = HttpRequest.newBuilder(URI.create(System.getenv("FENCEPOST_TEST_URL") + path))
        .version(HttpClient.Version.HTTP_1_1)
        .header("Authorization", "Bearer " + System.getenv("FENCEPOST_TEST_TOKEN"))
        .header("Content-Type", "application/json")
        .method(method, BodyPublishers.ofString(body))
        .build();
    var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
    assertEquals(200, answer.statusCode(), answer.body());
  }

  // ten lines: begin
  @Test
  void ordersSurviveALeaderKill() throws Exception {
    var topic = "orders-" + System.nanoTime();
    fencepost("POST", "/topics", "{\"name\": \"" + topic + "\"}");
    Map<String, Object> settings = Map.of("bootstrap.servers", System.getenv("FENCEPOST_KAFKA_BOOTSTRAP"));
    try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
      for (int order = 0; order < 100; order++) {
        if (order == 50) fencepost("POST", "/processes/leader:" + topic + "-0/kill", "");
        producer.send(new ProducerRecord<>(topic, "order " + order)).get();
      }
    }
    fencepost("POST", "/topics/" + topic + "/check-exactly-once", "");
  }
  // ten lines: end
}
