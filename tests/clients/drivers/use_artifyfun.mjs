// Usage: use_artifyfun.mjs URL KEY JOB
import { readFileSync, writeFileSync } from 'node:fs'
import { randomUUID } from 'node:crypto'
import { ComfyUIClient } from '@artifyfun/comfy-ui-client'

const [url, key, job] = process.argv.slice(2)
const client = new ComfyUIClient(new URL(url).host + (key ? `/k/${key}` : ''), randomUUID())
await client.connect()
await client.getSystemStats()
await client.getEmbeddings()
await client.getPrompt()
await client.getQueue()
const bytesOf = async (graph) => {
  const images = await client.getImages(graph)
  return Buffer.from(await images['9'][0].blob.arrayBuffer())
}
const made = await bytesOf(JSON.parse(readFileSync(`${job}/graph.json`)))
const { name } = await client.uploadImage(made, 'from the client.png')
const loading = JSON.parse(readFileSync(`${job}/loading.json`))
loading['1'].inputs.image = name
writeFileSync(`${job}/picture`, await bytesOf(loading))
await client.disconnect()
process.exit(0)
