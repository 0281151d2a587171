// What the Node programs of tests/interop share; arguments and output are those of python/lines.py.

// Node 20 has none, and @platformatic/kafka 2 wants one.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((...both) => { [resolve, reject] = both })
  return { promise, resolve, reject }
}

const KEYS = 50
const VALUE_BYTES = 100
const TICK_MS = 2

export const say = (...words) => process.stdout.write(words.join(' ').replaceAll('\n', ' ') + '\n')

export const sayAssigned = partitions => say('assigned', ...[...partitions].sort((a, b) => a - b))

export const keyOf = id => `key-${id % KEYS}`

export const valueOf = (run, id) => `${run}:${id}:${Math.floor(id / KEYS)}:`.padEnd(VALUE_BYTES, '.')

// What an error of several attempts says of its last one, too.
export const words = error => [error, error.errors?.at(-1), error.errors?.at(-1)?.errors?.at(-1)].filter(Boolean).join('; ')

// The ids of each partition. (Map.groupBy is newer than Node 20.)
export function byPartition (ids, partitions) {
  const groups = new Map()
  for (const id of ids) {
    const partition = (id % KEYS) % partitions
    groups.set(partition, [...(groups.get(partition) ?? []), id])
  }
  return groups
}

export const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

// Calls send with all ids that are due, one call after the other.
export async function paced (count, rate, send) {
  const started = performance.now()
  let next = 0
  while (next < count) {
    const due = Math.min(count, Math.floor(((performance.now() - started) / 1000) * rate) + 1)
    if (next < due) {
      await send(Array.from({ length: due - next }, (_, index) => next + index))
      next = due
    } else {
      await pause(TICK_MS)
    }
  }
}

export const terminated = new Promise(resolve => process.once('SIGTERM', resolve))

export async function main ({ produce, consume, admin }) {
  const [task, bootstrap, topic, ...rest] = process.argv.slice(2)
  const brokers = bootstrap.split(',')
  try {
    if (task === 'produce') await produce(brokers, topic, rest[0], Number(rest[1]), Number(rest[2]))
    else if (task === 'consume') await consume(brokers, topic, rest[0])
    else if (task === 'admin') await admin(brokers, topic, Number(rest[0]))
    else throw new Error(`unknown arguments ${process.argv}`)
  } catch (error) {
    say('fatal', words(error))
    process.exit(1)
  }
  say('done')
  process.exit(0)
}
