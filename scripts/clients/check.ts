// Use the types that openapi-typescript has made of a fleet, with openapi-fetch: node check.js URL [KEY]
import createClient from "openapi-fetch";
import type { components, paths as V1 } from "./fleet_v1";
import type { paths as V2 } from "./fleet_v2";

const [, , baseUrl, key] = process.argv;
const headers: Record<string, string> = key ? { Authorization: `Bearer ${key}` } : {};
const jobs = createClient<V1>({ baseUrl, headers });
const files = createClient<V2>({ baseUrl, headers });
type Job = components["schemas"]["JobDetail"];
type Progress = components["schemas"]["Progress"]; // also the data of the stream's `progress` events

function is(value: unknown, why: string): asserts value {
  if (!value) throw new Error(why);
}

async function ended(job_id: string): Promise<Job> {
  const deadline = Date.now() + 60_000;
  while (Date.now() < deadline) {
    const { data } = await jobs.GET("/api/v1/jobs/{job_id}", { params: { path: { job_id } } });
    is(data, `job ${job_id} is gone`);
    if (data.completed_at !== null) return data;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`job ${job_id} does not end`);
}

async function main(): Promise<void> {
  // A stored workflow: typed parameters in, a picture out.
  const made = await jobs.POST("/api/v1/workflows/image_card/jobs", {
    body: { params: { prompt: "a paper boat", style: "silk" }, metadata: { order: "4711" } },
  });
  is(made.data, JSON.stringify(made.error));
  const job = await ended(made.data.id);
  const progress: Progress | null = job.progress;
  is(job.status === "succeeded" && progress?.value === 1, JSON.stringify(job.error));
  const output = job.outputs[0];
  is(output, "no output");
  const picture = await files.GET("/api/v2/assets/{asset_id}/content", {
    params: { path: { asset_id: output.id } },
    parseAs: "blob",
  });
  is(picture.data instanceof Blob && picture.data.size === output.size_bytes, "not the whole picture");
  const page = await jobs.GET("/api/v1/jobs", { params: { query: { status: "succeeded", limit: 5 } } });
  is(page.data?.jobs.some((one) => one.id === job.id), "not in the list");

  // A refusal.
  const refused = await jobs.POST("/api/v1/workflows/image_card/jobs", {
    body: { params: { prompt: "x", width: 1 } },
  });
  is(refused.error?.error.code === "invalid_parameter", "width 1 was taken");

  // Graphs and files: an upload, a graph that reads it, and a job that is canceled.
  const form = new FormData();
  form.append("file", picture.data, "face.png");
  form.append("tags", "face,input");
  const asset = await files.POST("/api/v2/assets", {
    body: { file: "", tags: "face,input" },
    bodySerializer: () => form,
  });
  is(asset.data?.file_path === "face.png", JSON.stringify(asset.error));
  const workflow = {
    "1": { class_type: "LoadImage", inputs: { image: asset.data.file_path } },
    "2": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "copy" } },
  };
  const copied = await files.POST("/api/v2/jobs", { body: { workflow } });
  is(copied.data, JSON.stringify(copied.error));
  is((await ended(copied.data.id)).status === "succeeded", "the copy failed");
  const waiting = await jobs.POST("/api/v1/generate", { body: { prompt: "never" } });
  is(waiting.data, JSON.stringify(waiting.error));
  const canceled = await jobs.POST("/api/v1/jobs/{job_id}/cancel", {
    params: { path: { job_id: waiting.data.task_id } },
  });
  is(canceled.data, JSON.stringify(canceled.error));
  is(["canceled", "succeeded"].includes((await ended(waiting.data.task_id)).status), "not canceled");
  console.log("check.ts: the TypeScript client works");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
