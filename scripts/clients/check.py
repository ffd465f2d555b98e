"""Use the clients that openapi-python-client has made of a fleet: check.py URL [KEY]."""

import sys
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO

import fleet_v1.models as v1
import fleet_v2.models as v2
from fleet_v1 import AuthenticatedClient
from fleet_v1.api.generate import generate, result
from fleet_v1.api.jobs import cancel_job, get_job, list_jobs
from fleet_v1.api.workflows import run_image_card
from fleet_v2 import AuthenticatedClient as FilesClient
from fleet_v2.api.assets import create_asset, delete_asset, get_asset_content
from fleet_v2.api.jobs import create_job
from fleet_v2.types import File

PATIENCE_S = 60
URL, KEY = sys.argv[1], "".join(sys.argv[2:3]) or "none"
client, files = AuthenticatedClient(URL, token=KEY), FilesClient(URL, token=KEY)


def ended(job_id: str) -> v1.JobDetail:
    """Wait for a job's end."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        job = get_job.sync(job_id, client=client)
        assert isinstance(job, v1.JobDetail), job
        if job.completed_at is not None:
            return job
        time.sleep(0.1)
    raise TimeoutError(job_id)


# A stored workflow: typed parameters in, a picture out.
params = v1.ImageCardParams(prompt="a paper boat", style=v1.ImageCardParamsStyle.SILK)
made = run_image_card.sync(client=client, body=v1.ImageCardJob(params=params, metadata={"order": "4711"}))
assert isinstance(made, v1.JobDetail) and made.metadata == {"order": "4711"}, made
job = ended(made.id)
assert job.status is v1.JobStatus.SUCCEEDED and job.progress and job.progress.value == 1, job
picture = get_asset_content.sync(job.outputs[0].id, client=files)
assert isinstance(picture, File) and picture.payload.read(4) == b"\x89PNG"
page = list_jobs.sync(client=client, status="succeeded", limit=5)
assert isinstance(page, v1.JobPage) and made.id in [one.id for one in page.jobs]
over = cancel_job.sync(made.id, client=client)
assert isinstance(over, v1.JobDetail) and over.status is v1.JobStatus.SUCCEEDED  # it is what it was

# Refusals have one form, whatever was wrong.
small = v1.ImageCardJob(params=v1.ImageCardParams(prompt="x", width=1))
for refusal in (run_image_card.sync(client=client, body=small), get_job.sync("none", client=client)):
    assert isinstance(refusal, v1.ErrorEnvelope), refusal
    assert refusal.error.code in ("invalid_parameter", "not_found") and refusal.error.message

# The simplest way.
task = generate.sync(client=client, body=v1.GenerateBody(prompt="a red fox", size="512x512"))
assert isinstance(task, v1.AcceptedTask), task
ended(task.task_id)
told = result.sync(client=client, task_id=task.task_id)
assert isinstance(told, v1.TaskResult) and told.status is v1.TaskResultStatus.SUCCESS and told.image_url, told

# Graphs and files: an upload, a graph that reads it, and one that is canceled.
sent = BytesIO(picture.payload.getvalue()) if isinstance(picture.payload, BytesIO) else picture.payload
upload = v2.UploadBody(file=File(sent, file_name="face.png", mime_type="image/png"), tags="face,input")
asset = create_asset.sync(client=files, body=upload)
assert isinstance(asset, v2.Asset), asset
assert (asset.file_path, asset.tags) == ("face.png", ["face", "input"])
graph = v2.GraphJobBodyWorkflow.from_dict(
    {
        "1": {"class_type": "LoadImage", "inputs": {"image": asset.file_path}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
    }
)
copied = create_job.sync(client=files, body=v2.GraphJobBody(workflow=graph))
assert isinstance(copied, v2.Job) and ended(copied.id).status is v1.JobStatus.SUCCEEDED, copied
assert delete_asset.sync_detailed(asset.id, client=files).status_code == 204
late = v1.ImageCardJob(
    params=v1.ImageCardParams(prompt="never"),
    ttl_s=3600,
    timeout_s=600,
    finish_by=datetime.now(UTC) + timedelta(hours=2),
    tier=v1.ImageCardJobTier.BATCH,
    priority=-1,
)
waiting = run_image_card.sync(client=client, body=late)
assert isinstance(waiting, v1.JobDetail)
assert (waiting.tier, waiting.timeout_s, bool(waiting.finish_by)) == ("batch", 600, True)
cancel_job.sync(waiting.id, client=client)
assert ended(waiting.id).status in (v1.JobStatus.CANCELED, v1.JobStatus.SUCCEEDED)  # it may have been quicker
print("check.py: the Python client works")
