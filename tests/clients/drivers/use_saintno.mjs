// Usage: use_saintno.mjs URL KEY JOB
import { readFileSync, writeFileSync } from 'node:fs'
import { CallWrapper, ComfyApi, PromptBuilder } from '@saintno/comfyui-sdk'

const [url, key, job] = process.argv.slice(2)
const credentials = key ? { type: 'basic', username: 'me', password: key } : undefined
const api = new ComfyApi(url, undefined, { credentials })
const refused = new Promise((_, reject) => {
  api.on('auth_error', () => reject(new Error('the key was refused')))
  api.on('connection_error', (event) => reject(event.detail))
})
await Promise.race([api.init().waitForReady(), refused])
const need = (what, value) => {
  if (!value) throw new Error(`no ${what}`)
  return value
}
need('samplers', (await api.getSamplerInfo()).sampler?.[0]?.includes('euler'))
need('checkpoints', Array.isArray(await api.getCheckpoints()))
need('embeddings', Array.isArray(await api.getEmbeddings()))
need('features', typeof (await api.getFeatures()) === 'object')
need('model folders', (await api.getModelTypes()).includes('checkpoints'))
need('models', Array.isArray(await api.getModels('checkpoints')))

// run GRAPH: its pictures, told by the SDK's own way of following a prompt.
async function run(graph, changed = (builder) => builder) {
  const builder = changed(new PromptBuilder(graph, [], ['images']).setOutputNode('images', '9'))
  const output = await new Promise((resolve, reject) => {
    new CallWrapper(api, builder).onFinished(resolve).onFailed(reject).run()
  })
  const [image] = output.images.images
  const blob = await (await api.fetchApi(`/view?${new URLSearchParams(image)}`)).blob()
  return { image, bytes: Buffer.from(await blob.arrayBuffer()) }
}

const made = await run(JSON.parse(readFileSync(`${job}/graph.json`)))
const uploaded = need('upload', await api.uploadImage(made.bytes, 'from the sdk.png'))
const loading = JSON.parse(readFileSync(`${job}/loading.json`))
const { filename, subfolder } = uploaded.info
loading['1'].inputs.image = subfolder ? `${subfolder}/${filename}` : filename
const again = await run(loading)
need('history', (await api.getHistories(10)) && Object.keys(await api.getHistories(10)).length > 0)
if (key) await api.interrupt() // without keys it would interrupt whoever else runs there
writeFileSync(`${job}/picture`, again.bytes)
api.destroy()
process.exit(0)
