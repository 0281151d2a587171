const { Kafka, logLevel } = require('kafkajs')

/** Asks the cluster of 'fencepost serve-tests'. */
async function fencepost (method, path, body = {}) {
  const headers = {
    Authorization: `Bearer ${process.env.FENCEPOST_TEST_TOKEN}`,
    'Content-Type': 'application/json'
  }
  const answer = await fetch(process.env.FENCEPOST_TEST_URL + path, { method, headers, body: JSON.stringify(body) })
  expect([answer.status, await answer.json()]).toEqual([200, expect.anything()])
}

// ten lines: begin
test('orders survive a leader kill', async () => {
  const topic = `orders-${Date.now()}`
  await fencepost('POST', '/topics', { name: topic })
  const brokers = process.env.FENCEPOST_KAFKA_BOOTSTRAP.split(',')
  const producer = new Kafka({ brokers, logLevel: logLevel.NOTHING }).producer({ idempotent: true })
  await producer.connect()
  for (let order = 0; order < 100; order++) {
    if (order === 50) await fencepost('POST', `/processes/leader:${topic}-0/kill`)
    await producer.send({ topic, messages: [{ value: `order ${order}` }] })
  }
  await producer.disconnect()
  await fencepost('POST', `/topics/${topic}/check-exactly-once`)
}, 60_000)
// ten lines: end
