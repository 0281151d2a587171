// kafkajs. Its producer tells the first offset of each partition only, and its consumer always has a group.

import kafkajs from 'kafkajs'
import { byPartition, keyOf, main, paced, say, sayAssigned, terminated, valueOf } from './lines.mjs'

const { Kafka, logLevel } = kafkajs

const client = brokers =>
  new Kafka({
    clientId: 'interop',
    brokers,
    logLevel: logLevel.ERROR,
    retry: { initialRetryTime: 50, maxRetryTime: 500, retries: 240 }
  })

// One partition a call: kafkajs acknowledges what it never sent where a leader moves, while a call is retried, to a broker
// that has answered for another partition of the same call (sendMessages.js asks only brokers without a response).
async function produce (brokers, topic, run, count, rate) {
  const producer = client(brokers).producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  const partitions = await countPartitions(brokers, topic)
  const send = async (partition, ids, sentMs) => {
    try {
      const messages = ids.map(id => ({ partition, key: keyOf(id), value: valueOf(run, id) }))
      await producer.send({ topic, acks: -1, messages })
      for (const id of ids) say('ack', id, -1, -1, sentMs)
    } catch (error) {
      for (const id of ids) say('fail', id, error)
    }
  }
  await paced(count, rate, async ids => {
    const sentMs = Date.now()
    await Promise.all([...byPartition(ids, partitions)].map(([partition, own]) => send(partition, own, sentMs)))
  })
  await producer.disconnect()
}

async function countPartitions (brokers, topic) {
  const administrator = client(brokers).admin()
  await administrator.connect()
  const described = await administrator.fetchTopicMetadata({ topics: [topic] })
  await administrator.disconnect()
  return described.topics[0].partitions.length
}

async function consume (brokers, topic, group) {
  const consumer = client(brokers).consumer({
    groupId: group,
    sessionTimeout: 6000,
    heartbeatInterval: 1000,
    maxWaitTimeInMs: 100
  })
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => sayAssigned(payload.memberAssignment[topic] ?? []))
  consumer.on(consumer.events.CRASH, ({ payload }) => say('note', payload.error))
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  await consumer.run({
    autoCommitInterval: 500,
    eachMessage: async ({ partition, message }) => say('record', partition, message.offset, message.key, message.value)
  })
  await terminated
  await consumer.disconnect()
}

async function admin (brokers, topic, partitions) {
  const administrator = client(brokers).admin()
  await administrator.connect()
  await administrator.createTopics({ topics: [{ topic, numPartitions: partitions }] })
  const described = await administrator.fetchTopicMetadata({ topics: [topic] })
  say('topic', topic, described.topics[0].partitions.length)
  await administrator.disconnect()
}

main({ produce, consume, admin })
