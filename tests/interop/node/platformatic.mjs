// @platformatic/kafka. Its producer tells the first offset of each partition only, and its consumer always has a group.

import { Admin, Consumer, Producer, stringDeserializers, stringSerializers } from '@platformatic/kafka'
import { byPartition, keyOf, main, paced, say, sayAssigned, terminated, valueOf, words } from './lines.mjs'

const options = brokers => ({ clientId: 'interop', bootstrapBrokers: brokers, retries: 240, retryDelay: 100 })

async function produce (brokers, topic, run, count, rate) {
  const producer = new Producer({ ...options(brokers), serializers: stringSerializers, idempotent: true, acks: -1 })
  const metadata = await producer.metadata({ topics: [topic] })
  const partitions = metadata.topics.get(topic).partitionsCount
  const send = async (partition, ids, sentMs) => {
    try {
      const messages = ids.map(id => ({ topic, partition, key: keyOf(id), value: valueOf(run, id) }))
      await producer.send({ messages })
      for (const id of ids) say('ack', id, -1, -1, sentMs)
    } catch (error) {
      for (const id of ids) say('fail', id, words(error))
    }
  }
  await paced(count, rate, async ids => { // one partition a call, as for kafkajs
    const sentMs = Date.now()
    await Promise.all([...byPartition(ids, partitions)].map(([partition, own]) => send(partition, own, sentMs)))
  })
  await producer.close()
}

async function consume (brokers, topic, group) {
  const consumer = new Consumer({
    ...options(brokers),
    groupId: group,
    deserializers: stringDeserializers,
    sessionTimeout: 6000,
    rebalanceTimeout: 6000,
    heartbeatInterval: 1000
  })
  consumer.on('consumer:group:join', ({ assignments }) =>
    sayAssigned((assignments ?? []).filter(each => each.topic === topic).flatMap(each => each.partitions))
  )
  const stream = await consumer.consume({
    topics: [topic],
    autocommit: 500,
    mode: 'committed',
    fallbackMode: 'earliest',
    maxWaitTime: 100
  })
  stream.on('data', message => say('record', message.partition, message.offset, message.key, message.value))
  stream.on('error', error => say('note', words(error)))
  await terminated
  await consumer.close(true)
}

async function admin (brokers, topic, partitions) {
  const administrator = new Admin(options(brokers))
  const created = await administrator.createTopics({ topics: [topic], partitions, replicas: -1 })
  const metadata = await administrator.metadata({ topics: [topic] })
  say('topic', created[0].name, metadata.topics.get(topic).partitionsCount)
  await administrator.close()
}

main({ produce, consume, admin })
