// Usage: use_comfy_ui_client.mjs URL KEY JOB
import { readFileSync, writeFileSync } from 'node:fs'
import { randomUUID } from 'node:crypto'
import { ComfyUIClient } from 'comfy-ui-client'

const [url, key, job] = process.argv.slice(2)
const client = new ComfyUIClient(new URL(url).host + (key ? `/k/${key}` : ''), randomUUID())
await client.connect()
await client.getSystemStats()
await client.getObjectInfo('SaveImage')
const images = await client.getImages(JSON.parse(readFileSync(`${job}/graph.json`)))
writeFileSync(`${job}/picture`, Buffer.from(await images['9'][0].blob.arrayBuffer()))
await client.disconnect()
process.exit(0)
