// Usage: use_stable_canvas.mjs URL KEY JOB
import { readFileSync, writeFileSync } from 'node:fs'
import { Client } from '@stable-canvas/comfyui-client'
import WebSocket from 'ws'

const [url, key, job] = process.argv.slice(2)
const headers = key ? { Authorization: `Bearer ${key}` } : {}
const client = new Client({
  api_host: new URL(url).host,
  fetch: (address, options = {}) => fetch(address, { ...options, headers: { ...options.headers, ...headers } }),
  WebSocket: class extends WebSocket {
    constructor(address) {
      super(address, { headers })
    }
  },
})
await client.connect()
const stats = await client.getSystemStats()
if (!stats.devices?.length) throw new Error('no devices')
if (!(await client.getSamplers()).includes('euler')) throw new Error('no samplers')
await client.getEmbeddings()
const graph = JSON.parse(readFileSync(`${job}/graph.json`))
const bytesOf = async (output) => {
  const [image] = output.images
  if (image.type === 'buff') return Buffer.from(image.data)
  const answer = await fetch(image.data, { headers })
  if (!answer.ok) throw new Error(`${image.data}: ${answer.status}`)
  return Buffer.from(await answer.arrayBuffer())
}
const followed = await bytesOf(await client.enqueue(graph))
const polled = await bytesOf(await client.enqueue_polling(graph, { polling_ms: 100 }))
if (Buffer.compare(followed.subarray(0, 8), polled.subarray(0, 8)) !== 0) throw new Error('no picture')
await client.getQueue()
if (key) await client.interrupt() // without keys it would interrupt whoever else runs there
writeFileSync(`${job}/picture`, followed)
client.close()
process.exit(0)
