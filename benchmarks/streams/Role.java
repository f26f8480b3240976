// Filter and collector as one would write them with Kafka Streams, exactly-once: what benchmarks/throughput.py compares
// with. One stream thread, the default. In its favour: tables that are only read lie in memory, and it commits every half
// second, as gokamsg does under load, not ten times a second. The collector's list is a RocksDB store with its record
// cache, Kafka Streams' defaults. Keys are placed as Goka places them.
//
//     java -cp ... Role BROKERS ROLE GROUP STATE

import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Joined;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.TimestampedKeyValueStore;
import org.apache.kafka.streams.state.ValueAndTimestamp;

public class Role {
    static final int FEED_LENGTH = 5;
    static final ObjectMapper JSON = new ObjectMapper();

    record Message(
            @JsonProperty("From") String from, @JsonProperty("To") String to, @JsonProperty("Content") String content) {}

    record Blocked(@JsonProperty("Blocked") boolean blocked) {}

    static <T> Serde<T> json(TypeReference<T> type) {
        return Serdes.serdeFrom(
                (topic, value) -> {
                    try {
                        return value == null ? null : JSON.writeValueAsBytes(value);
                    } catch (IOException error) {
                        throw new UncheckedIOException(error);
                    }
                },
                (topic, bytes) -> {
                    try {
                        return bytes == null ? null : JSON.readValue(bytes, type);
                    } catch (IOException error) {
                        throw new UncheckedIOException(error);
                    }
                });
    }

    static final Serde<Message> MESSAGE = json(new TypeReference<Message>() {});

    /** FNV-1a, its sum read as a signed number, the absolute value of that, modulo the partitions. */
    static int partitionOf(String key, int count) {
        int sum = 0x811c9dc5;
        for (byte each : key.getBytes(StandardCharsets.UTF_8)) {
            sum = (sum ^ (each & 0xff)) * 0x01000193;
        }
        return (int) (Math.abs((long) sum) % count);
    }

    static void filter(StreamsBuilder builder) {
        Serde<String> text = Serdes.String();
        builder.globalTable(
                "translator-table",
                Consumed.with(text, text),
                Materialized.<String, String>as(Stores.inMemoryKeyValueStore("words")));
        Serde<Blocked> blocked = json(new TypeReference<Blocked>() {});
        var blocker = builder.table(
                "blocker-table",
                Consumed.with(text, blocked),
                Materialized.<String, Blocked>as(Stores.inMemoryKeyValueStore("blocked")));
        StreamPartitioner<String, Message> placed =
                (topic, key, value, count) -> Optional.of(Set.of(partitionOf(key, count)));
        builder.stream("message_sent", Consumed.with(text, MESSAGE))
                .leftJoin(blocker, (said, row) -> row != null && row.blocked() ? null : said, Joined.with(text, MESSAGE, blocked))
                .filter((sender, said) -> said != null)
                .processValues(Translator::new)
                .selectKey((sender, said) -> said.to())
                .to("message_received", Produced.with(text, MESSAGE, placed));
    }

    static class Translator implements FixedKeyProcessor<String, Message, Message> {
        private FixedKeyProcessorContext<String, Message> context;
        private TimestampedKeyValueStore<String, String> words;

        @Override
        public void init(FixedKeyProcessorContext<String, Message> context) {
            this.context = context;
            words = context.getStateStore("words");
        }

        @Override
        public void process(FixedKeyRecord<String, Message> record) {
            String[] said = record.value().content().split(" ", -1);
            for (int index = 0; index < said.length; index++) {
                ValueAndTimestamp<String> other = words.get(said[index]);
                if (other != null) {
                    said[index] = other.value();
                }
            }
            Message value = record.value();
            context.forward(record.withValue(new Message(value.from(), value.to(), String.join(" ", said))));
        }
    }

    static void collector(StreamsBuilder builder) {
        Serde<List<Message>> feed = json(new TypeReference<List<Message>>() {});
        builder.stream("message_received", Consumed.with(Serdes.String(), MESSAGE))
                .groupByKey(Grouped.with(Serdes.String(), MESSAGE))
                .aggregate(
                        ArrayList::new,
                        (recipient, said, before) -> {
                            List<Message> after = new ArrayList<>(before);
                            after.add(said);
                            return after.subList(Math.max(0, after.size() - FEED_LENGTH), after.size());
                        },
                        Materialized.<String, List<Message>>as(Stores.persistentKeyValueStore("feeds"))
                                .withKeySerde(Serdes.String())
                                .withValueSerde(feed));
    }

    public static void main(String[] arguments) {
        StreamsBuilder builder = new StreamsBuilder();
        if (arguments[1].equals("filter")) {
            filter(builder);
        } else {
            collector(builder);
        }
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[2]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[3]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 500);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        settings.put(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG, 6000);
        settings.put(ConsumerConfig.HEARTBEAT_INTERVAL_MS_CONFIG, 1000);
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(20))));
        streams.start();
    }
}
