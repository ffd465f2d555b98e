"""All keys and channels of a fleet in Redis, with their content.

Python says ``keyspace.job(job_id)``, a script ``job_key(job_id)``: both are made from :class:`Keyspace`.
"""

import re
from collections.abc import Callable

from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE

_WORD = re.compile(r"[A-Z]+")  # stands for the thing that a key belongs to
_KEY = re.compile(r"\b(\w+)_key\b")


class _One:
    """A key that exists once."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __set_name__(self, _: object, name: str) -> None:
        self._name = name

    def __get__(self, keyspace: "Keyspace", _: object) -> str:
        # Kept in place of this: the next look-up does not come here.
        made = vars(keyspace)[self._name] = keyspace.whole(self.pattern)
        return made


class _Each:
    """A key that exists for each thing of a kind."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __set_name__(self, _: object, name: str) -> None:
        self._name = name

    def __get__(self, keyspace: "Keyspace", _: object) -> Callable[..., str]:
        whole = _WORD.sub("%s", keyspace.whole(self.pattern))
        made = vars(keyspace)[self._name] = lambda *parts: whole % parts
        return made


class Keyspace:
    """The keys of one fleet. All times in them are the server's, in Unix seconds.

    Args:
        namespace: The prefix of all keys, and the name of RQ's queue; checked by
            :func:`comfy_fleet.domain.namespace.check_namespace`.
    """

    # -- jobs
    job = _Each("job:ID")  # hash: the job's record, see job_records.py
    job_outputs = _Each("job:ID:outputs")  # hash: NODE\nKEY\nINDEX -> output as JSON
    job_names = _Each("job:ID:names")  # hash: NODE\nKEY\nINDEX -> TYPE/SUBFOLDER/NAME for the owner
    job_ui = _Each("job:ID:ui")  # string: what the graph's nodes handed over for the user interface, as JSON
    job_extra = _Each("job:ID:extra")  # string: what its owner can read of extra_data, as JSON, compressed
    job_secret = _Each("job:ID:secret")  # string: the rest of it, encrypted, erased when the job ends
    job_preview = _Each("job:ID:preview")  # string: the latest preview, for readers who come late
    job_cleanups = _Each("job:ID:traces")  # set: NODE RUN: whose files stay on nodes until the job is final
    graph = _Each("graph:HASH")  # string: a graph as submitted
    graphs = _One("graphs")  # hash: HASH -> how many jobs need the graph
    jobs = _One("jobs")  # zset: ID -> created
    jobs_of = _Each("jobs:OWNER")  # zset: the same of one owner
    live = _Each("live:OWNER")  # zset: ID -> its number, jobs of the owner that are not final
    numbers = _One("numbers")  # hash: OWNER -> the last number of a job
    listed = _Each(
        "listed:OWNER:STATE"
    )  # zset: ID -> created: the owner's jobs by ComfyUI's word for their state
    history = _Each(
        "history:OWNER"
    )  # zset: ID -> when it ended, or just above the one before: ComfyUI's history, without what was deleted
    listed_owners = _One(
        "listed"
    )  # set: whose jobs are all in these lists; those of earlier versions were not
    lists_mended = _One("listed:mended")  # string: these were compared with the records a moment ago
    prompt = _Each("prompt:OWNER:HASH")  # string: the newest job that its client calls so
    saved_counts = _Each("saved:counts:OWNER")  # hash: TYPE/SUBFOLDER/PREFIX* -> last number; stays for ever
    saved_files = _Each("saved:files:OWNER")  # hash: TYPE/SUBFOLDER/NAME -> the asset
    saved_newest = _Each("saved:newest:OWNER:TYPE")  # zset: NAME -> when it was saved: those in no subfolder
    queued = _One("queued")  # zset: ID -> rank (created - priority * ageing): all that wait, by their places
    queued_tended = _One("queued:tended")  # string: somebody put the above right a moment ago
    queued_checked = _One("queued:checked")  # string: how many of them this round has looked at
    queued_mended = _One(
        "queued:mended"
    )  # string: how far a round over all live jobs has come, see tend_queue.lua
    placements = _One("placements")  # set: classes of `queue`; of versions before layout 3, as is `queue`
    queue = _Each("queue:PLACEMENT")  # zset: ID -> rank: what they have queued and nobody has adopted yet
    deadlines = _One("deadlines")  # zset: ID -> deadline, queued jobs only
    expiring = _One("expiring")  # zset: ID -> when its retention ends, final jobs only
    ended = _One("ended")  # list: ID of the last 200 that ended, the latest first
    idempotency = _Each("idem:SCOPE:HASH")  # string: JOB FINGERPRINT, for 24 h
    replay = _Each("replay:SCOPE:HASH")  # string: FINGERPRINT NUL BODY, the answer to a request, for 24 h
    replay_mark = _Each("replay:mark:SCOPE:HASH")  # string: somebody works on that upload, at most a minute
    # string: JOB whose outputs equal jobs get, when it was computed, ComfyUI's VERSION, and how its files are
    #         named, as JSON
    result = _Each("result:OWNER:HASH")
    # equal jobs that share one run: FLIGHT is the job that began it
    flight_of = _Each("flight:of:OWNER:HASH")  # string, for a day: the newest job of this key and placement
    flight = _Each("flight:FLIGHT")  # string: its leader, the job that waits and runs for all
    flight_jobs = _Each("flight:FLIGHT:jobs")  # zset: ID of a job that follows -> since when
    flights = _One("flights")  # zset: FLIGHT with followers -> when it was looked after last
    flights_tended = _One("flights:tended")  # string: somebody looked after some of them a moment ago
    # batches (docs/adr/0060).  ITEM is an item's number in its batch, from 0.  All but the first are written
    # before the batch exists, for an hour
    batch = _Each("batch:BATCH")  # hash: owner, created, total, workflow, version, webhook (JSON), completed,
    #                               rounds (how often it was to be completed), cancel, retried, storing
    #                               (items that wait for their store), unstored (those that failed there)
    batch_items = _Each("batch:BATCH:items")  # zset: ITEM -> its state and number, see batches.lua
    batch_jobs = _Each("batch:BATCH:jobs")  # hash: ITEM -> the job's ID
    batch_names = _Each("batch:BATCH:names")  # hash: ITEM -> custom_id
    batch_refused = _Each("batch:BATCH:refused")  # hash: ITEM -> its errors as JSON
    batch_pending = _Each("batch:BATCH:pending")  # list: jobs to be queued: what submit.lua gets, in one text
    batches = _One("batches")  # zset: BATCH -> created
    batches_of = _Each("batches:OWNER")  # zset: the same of one owner
    batches_live = _One("batches:live")  # zset: BATCH that is not completed -> when it was looked after last
    batches_busy = _One("batches:busy")  # zset: BATCH with items to be queued or canceled -> when some were
    batches_waiting = _One("batches:waiting")  # hash: OWNER, "" for all -> items that are to be queued
    # inputs that jobs name by URL; FETCH is a hash of owner and URL
    fetching = _One("fetching")  # zset: ID -> since when: jobs in no queue yet
    fetch = _Each("fetch:FETCH")  # hash: owner, url; token (of the process that fetches it), tries
    fetch_jobs = _Each("fetch:FETCH:jobs")  # set: ID of a job that waits for it, or did
    fetch_owners = _One("fetch:owners")  # zset: OWNER -> when one of theirs was taken last
    fetch_due = _Each("fetch:due:OWNER")  # zset: FETCH -> from when it may be taken
    fetch_busy = _Each("fetch:busy:OWNER")  # zset: FETCH -> until when a process has it
    fetched = _Each("fetched:FETCH")  # hash, for a day: asset, etag, modified: what it gave the last time
    fetched_fresh = _Each("fetched:FETCH:fresh")  # string: that asset, while nobody need ask for it again
    needs = _Each("needs:KEY")  # string: what a placement class needs of a node, as JSON
    sched_set = _Each("sched:set:KEY")  # string: files that a job loads, [[FOLDER/NAME, bytes] ...] as JSON
    sched_memory = _Each("sched:memory:FAMILY")  # hash: fits, fails ([[bytes, pixels, until], ...]), of "*"
    #                                              refused, ran: see note_memory.lua
    sched_memories = _One("sched:memories")  # zset: FAMILY -> when something was noted of it
    oom = _Each("oom:PROFILE")  # string: bytes of the largest card on which it ran out of memory
    merge_waiting = _Each("merge:KEY")  # zset: ID -> rank: jobs that may be merged; some may wait no more
    merge_seen = _Each("merge:KEY:seen")  # string: such a job came within the time that one waits for others
    # jobs that are kept beyond their retention
    kept = _Each("kept:OWNER")  # set: the owner's jobs that are kept
    asset_kept = _Each("asset:ID:kept")  # set: jobs that are kept and use this asset

    # -- choosing (docs/adr/0038).  FAMILY is the largest of a job's model files, or nothing
    sched_count = _One("sched:count")  # hash: PLACEMENT -> how many jobs wait
    # A tenant's owners in a queue are a group, PLACEMENT\tTENANT, of the default one PLACEMENT. Tenants are
    # one, PLACEMENT\t, with /TENANT for OWNER. In owners, unpassed, family, left, clock PLACEMENT is a group
    sched_tenanted = _One("sched:tenanted")  # string, for 30 days: jobs of other tenants came
    sched_owners = _Each("sched:owners:PLACEMENT")  # zset: OWNER -> tag, or an earlier one
    sched_unpassed = _Each(
        "sched:unpassed:PLACEMENT"
    )  # the same, of those with jobs that were not passed over
    sched_passed = _Each(
        "sched:passed:PLACEMENT"
    )  # zset: OWNER -> when the first of its passed jobs is overdue
    sched_jobs = _Each("sched:jobs:PLACEMENT\tOWNER")  # zset: ID -> order
    sched_turns = _Each("sched:turns:PLACEMENT\tOWNER")  # the same, of jobs that were not passed over
    sched_late = _Each("sched:late:PLACEMENT\tOWNER")  # zset: ID of a passed job -> when it is overdue
    sched_family = _Each("sched:family:PLACEMENT\tFAMILY")  # zset: OWNER -> tag, or an earlier one
    sched_loads = _Each("sched:loads:PLACEMENT\tOWNER\tFAMILY")  # zset: ID -> order
    sched_backlog = _Each("sched:backlog:PLACEMENT")  # hash: FAMILY -> SECONDS BYTES GUESSED
    sched_pressure = _Each("sched:pressure:PLACEMENT")  # zset: FAMILY -> minus its seconds for each holder
    sched_used = _Each("sched:used:OWNER")  # hash: used, credit, active, present, weight, =PLACEMENT: how far
    #                                         it was lifted there
    sched_clock = _One("sched:clock")  # hash: PLACEMENT -> the highest tag that a node has seen there
    sched_left = _Each("sched:left:PLACEMENT")  # zset: OWNER that waits no more, and is ahead -> tag
    sched_holders = _Each("sched:holders:POOL\tFAMILY")  # zset: NODE -> when it is free, -1: it is
    sched_pools = _One("sched:pools")  # set: POOLs of nodes that hold families
    sched_node = _Each("sched:node:NODE")  # hash: card, memory ([[file, bytes], ...]) and held ([FAMILY,
    #                                   ...]), what was used last at the end; pool, disk_rate, ram_rate,
    #                                   clock (and of other levels), passes_until, free_at, run, off, set,
    #                                   unmeasured ([PROFILE, used_s, bytes from disk and from
    #                                   memory] of a run whose load is not known yet)
    sched_profile = _Each("sched:profile:PROFILE")  # hash: run_s, runs; "*" is every profile
    # list: real times over estimated ones of the last 256 jobs; KIND: see domain/schedule/calibration.py
    sched_errors = _Each("sched:errors:KIND")

    # -- bounds of running jobs.  SUBJECT is user:NAME or tenant:NAME
    bounded_runs = _Each("bounds:runs:SUBJECT")  # set: RUN that counts towards one
    bounds_parked = _Each(
        "bounds:parked:SUBJECT"
    )  # set: [INDEX, PLACEMENT, TENANT, FAMILY, OWNER] as JSON: who has +inf
    #                                                there until a run ends
    bounds_subjects = _One("bounds")  # set: SUBJECTs that were parked

    # -- runs
    runs = _One("runs")  # zset: RUN -> when its lease ends
    run = _Each("run:RUN")  # hash: job, node, token, dispatcher, line (its LifeLine), phase, manifest, since,
    #                       schema, rq_beat,
    #                       staged (the FILEs that its graph reads), merged (MODE), parts (how many runs
    #                       are one prompt; only the first has the node's lease); if it was
    #                       handed over: folder (the job that its files on the node are named after),
    #                       served (JOBs before)
    run_shown = _Each("run:RUN:shown")  # hash: NODE -> when its queue last held the run, and the HOST:PORT
    lease = _Each("lease:NODE")  # string: the run that occupies the node
    ready_leases = _One("ready:leases")  # hash: NODE -> RUN AT DISPATCHER: an idle node's lease, held ready
    ready_holders = _One("ready:holders")  # zset: DISPATCHER -> its last beat
    ready_watched = _One("ready:watched")  # string: HAProxy's controller cuts those that have to go

    # -- nodes
    nodes = _One("nodes")  # hash: NODE -> its record as JSON
    node = _Each("node:NODE")  # hash: cordoned, verdict, counts, twin (the node that is the same ComfyUI),
    #                            speed (mean logarithm over `speeds` runs),
    #                            results (KEY of the editor whose are in its cache)
    node_runs = _Each("node:NODE:runs")  # set: runs that still need it
    node_errors = _Each("node:NODE:errors")  # list: the last ten, as JSON
    node_models = _Each("node:NODE:models")  # string: files that jobs used since it started or was freed,
    #                                          the latest first, one a line: for people, and all versions
    urls = _One("urls")  # hash: HOST:PORT -> NODE: one ComfyUI is one node
    pool_nodes = _Each("pool:POOL")  # set: the pool's nodes
    pools = _One("pools")  # hash: POOL -> its settings as JSON
    pool_slots = _One("pools:slots")  # hash: POOL -> HAProxy's slot
    inventory = _Each("inventory:HASH")  # string: an inventory, packed
    inventory_nodes = _Each("inventory:HASH:nodes")  # set: whose inventory it is
    object_info = _Each("object_info:HASH")  # string: what nodes answer to /object_info, packed
    object_info_nodes = _Each("object_info:HASH:nodes")  # set: whose answer it is
    # hash: what nodes say about the sizes of their model files: content (packed), digest (of it), of (the
    #       inventories of the nodes asked), at (when they were asked last)
    model_sizes = _One("model_sizes")
    model_sizes_asked = _One("model_sizes:asked")  # string: a process asks the nodes, or did a moment ago
    model_fetches = _One("model_fetches")  # zset: ID -> when an operator wanted the file
    model_fetches_open = _One("model_fetches:open")  # set: IDs of those with a host that is not through
    # hash: order (as JSON), canceled, `now HOST` and `end HOST` (what it says, as JSON; the end once),
    #       `at HOST` (where its agent gives the file to others)
    model_fetch = _Each("model_fetch:ID")
    reading = _Each("reading:NODE")  # string: somebody asks the node what it has
    report = _Each("report:NODE")  # string: what an agent last saw of the node, for 10 s

    # hash: PROCESS HOST ADDRESS, or agent HOST -> where it serves its metrics, as JSON, with `at`
    scrape_targets = _One("scrape:targets")

    # -- hosts
    hosts = _One("hosts")  # zset: HOST -> last heartbeat
    host = _Each("host:HOST")  # string: that heartbeat, for 10 s
    host_agent = _Each("host:HOST:agent")  # string: which start of an agent speaks for it, for 2.5 s
    host_nodes = _Each("host:HOST:nodes")  # set: nodes that its agent registered
    agent_tokens = _Each("agent:tokens:HOST")  # hash: ID -> its token's record as JSON, with the SHA-256
    agent_token_hosts = _One("agent:tokens")  # set: HOSTs with tokens
    gpu = _Each("gpu:UUID")  # hash: NODE -> when its agent said so, and what it holds there, as JSON
    cleanup = _Each("trash:HOST")  # zset: NODE JOB RUN [STRAY ...] -> when its files became useless

    # -- jobs that RQ's own clients have enqueued (docs/adr/0061).  RQID is an id in RQ, chosen by a client
    # hash: state (taken: it is checked; live: there is a job), job (its ID), created (as RQ writes it),
    #       running (its RUN that RQ was told of), progress (the same), beat, stopped (by RQ's command)
    inbox_job = _Each("inbox:job:RQID")
    inbox_taken = _One("inbox:taken")  # zset: RQID that is being checked -> when it was taken
    inbox_live = _One("inbox:live")  # zset: RQID of a live job -> when it was looked at
    inbox_changed = _One("inbox:changed")  # set: RQID whose job has changed
    inbox_turn = _One("inbox:turn")  # string: which process looks after these, for 3 s

    # -- who edits graphs
    editor = _Each("editor:KEY")  # hash, for a day: node (of its last run), cold (seconds of the last run for
    #                               which nothing was cached), saving (how many fewer the last took, or cold)

    # -- files that graphs read, as they are on the nodes: FILE is of their owner, content and extension
    staged = _Each("staged:NODE")  # hash: FILE -> FOLDER/FOLDER, two drawn ids below input/fleet
    #                               "ahead FOLDER/FOLDER" -> the same: of a file that is being sent ahead
    staged_ends = _Each("staged:NODE:ends")  # zset: FILE -> when it may be deleted, if no run needs it then
    # hash: what was staged for a job that has not started: FILE -> its bytes; job: that job's ID
    staged_ahead = _Each("staged:NODE:ahead")

    # -- assets: records over blobs.  PATH is the blob store's own word
    asset = _Each("asset:ID")  # hash: the asset's record, see asset_record.py
    asset_jobs = _Each("asset:ID:jobs")  # set: live jobs that need it (submit adds, the job's end removes)
    asset_hold = _Each("asset:hold:JOB")  # string: this job is about to be written, for 60 s
    asset_outputs = _Each("asset:job:JOB")  # hash: HASH NUL NAME -> ID: the job's outputs
    asset_names = _Each("asset:names:OWNER:NAME")  # zset: ids of uploads so named in any spelling, by time;
    #                                              NAME is /FOLDER/NAME outside of ComfyUI's folder `input`
    asset_uploads = _Each("asset:uploads:OWNER:FOLDER")  # zset: NAME as above -> when it was uploaded last
    uploads_listed = _One("uploads:listed")  # string: uploads of earlier versions were put into the above
    asset_expiry = _One("asset:expiry")  # zset: ID -> when it ends, uploads only
    files = _One("files")  # string: which blob store has the bytes (its id), and where it was at first
    blob_owner = _Each("blob:owner:OWNER:HASH")  # set: ids of the owner's records over these bytes
    blob_same = _Each("blob:same:OWNER:HASH")  # hash: NAME -> the newest upload of these bytes and this name
    blob_at = _Each("blob:at:HASH")  # string: PATH of these bytes, for the next upload of them
    blob_refs = _Each("blob:refs:PATH")  # set: ids of the records over a blob
    blob_unused = _One("blob:unused")  # zset: HASH PATH -> when its last record went: it waits for the sweep
    blob_strays = _One("blob:strays")  # zset: PATH -> when it was found without any record
    blob_condemned = _One("blob:condemned")  # zset: PATH -> since when it is being deleted: nothing uses it
    blob_walked = _One("blob:walked")  # string: all blobs were looked through within the last hour
    blob_pins = _One("blob:pins")  # these three: of versions that deleted blobs at once
    blob_doomed = _One("blob:doomed")
    blob_gone = _Each("blob:gone:PATH")

    # -- uploads that come in parts (docs/adr/0066)
    upload = _Each("upload:ID")  # hash: its record, see uploads.py; claim (who wants to write it)
    uploads = _One("uploads")  # zset: ID -> when it is forgotten unless more of it comes
    uploads_open = _One("uploads:open")  # hash: ID that has not become an asset -> LENGTH OWNER
    uploads_whole = _One("uploads:whole")  # set: those of them of which all bytes are here
    uploads_bytes = _One("uploads:bytes")  # hash: OWNER -> the sum of their lengths

    # -- websockets of clients, all for 120 s
    socket = _Each("socket:HASH:OWNER")  # string: a client's newest websocket, as JSON
    sockets = _Each(
        "sockets:OWNER"
    )  # zset: HASH of a client with an open websocket -> when it was written last

    # -- what people's editors saved and ran, until one is matched with the other; both for a day
    editor_saves = _Each("editor:saves:OWNER")  # hash: FILE -> workflow, signature, when: as JSON
    editor_runs = _Each("editor:runs:OWNER")  # hash: SIGNATURE -> when, and the newest job of it: as JSON
    publish_test = _Each("publish:test:OWNER:NAME")  # string: VERSION JOB: which job tested a draft

    # -- who may use the fleet: docs/adr/0050
    people_version = _One("people:version")  # string: drawn anew for each change of these
    tenants = _One("tenants")  # hash: NAME -> its record as JSON
    users = _One("users")  # hash: NAME -> their record as JSON
    access_keys = _One("keys")  # hash: ID -> the key's record as JSON, with its SHA-256 and not the key

    audit = _One("audit")  # stream: who changed the fleet: event, by, key, address, about (as JSON)
    # hash, for 400 days: what was used on a day (since 1970): TENANT\nOWNER\nWORKFLOW\nPOOL\nWHAT -> how much
    usage = _Each("usage:DAY")
    submit_times = _Each("submits:SCOPE:SUBJECT:WINDOW")  # list: when jobs were submitted, the latest first
    stored_bytes = _One("stored:bytes")  # hash: OWNER -> bytes of their assets whose records say `counted`

    # -- people who have signed in
    session = _Each("session:HASH")  # string: proves which key it began with; HASH is the token's
    # string: a sign-in on its way from the console's origin to the editor's; HASH is that of its code
    hand_over = _Each("handover:HASH")

    # -- workflow store: stored workflows that are not in the folder
    workflows = _One("workflows")  # hash: NAME -> the version in production
    workflows_removed = _One(
        "workflows:removed"
    )  # hash: NAME -> who removed it, when and in which version: as JSON
    workflow = _Each("workflow:NAME")  # hash: editor_name; `label LABEL` -> VERSION, `by LABEL`, `at LABEL`:
    #                                    who set it, and when
    # zset: VERSION -> when it was put into production last
    workflow_versions = _Each("workflow:NAME:versions")
    workflow_version = _Each("workflow:NAME:version:VERSION")  # hash: author, at, note; content, ui (JSON,
    #                                                            compressed), thumbnail
    workflow_history = _Each("workflow:NAME:history")  # list: what happened, as JSON, the latest first
    drafts = _Each("drafts:OWNER")  # zset: NAME -> when it was saved
    # hash: editor_name, base (a version), job, at (when it was saved); content, ui (JSON, compressed)
    draft = _Each("draft:OWNER:NAME")

    # -- people's files in the editor; VERSION is another one for every write
    user_files = _Each("userdata:files:OWNER")  # hash: PATH -> the file's record as JSON; PATH/ -> nothing
    user_bytes = _Each("userdata:bytes:OWNER")  # string: how many bytes these are together
    user_moves = _Each("userdata:moves:OWNER")  # list, for a day: moves that drafts have to follow, as JSON
    user_content = _Each("userdata:content:OWNER:VERSION")  # string: a file's content, compressed

    # -- what people asked for and no node had
    missing_owners = _One("missing")  # set: who asked for something that was missing
    missing_of = _Each("missing:OWNER")  # hash: HASH of a class or file -> asked, first, last, about, as JSON

    # -- messages to webhooks (docs/adr/0054).  RECEIVER: a hash of an owner and a server's origin
    webhook = _Each("webhook:ID")  # hash, for 30 days: owner, type, at, url, receiver, state (waiting,
    #                                delivered or failed), attempts, tried, status, error, token (of who sends
    #                                it), after (a message that goes before), early (when it was due, if it is
    #                                tried before); job and base, or data (JSON)
    webhook_jobs = _One("webhook:jobs")  # zset: ID of a live job with a webhook -> when it was looked at
    webhook_receivers = _One("webhook:receivers")  # zset: RECEIVER with messages -> when the next one is due
    webhook_failing = _One("webhook:failing")  # the same, of receivers that fail
    webhook_receiver = _Each("webhook:receiver:RECEIVER")  # hash: of one that fails: fails, since, until
    webhook_queue = _Each("webhook:queue:RECEIVER")  # zset: ID -> when it is due
    webhook_taken = _Each("webhook:taken:RECEIVER")  # zset: ID that is being sent -> until when
    webhook_gone = _Each("webhook:gone:OWNER:HASH")  # string: this URL has answered 410 Gone
    webhooks_of = _Each("webhooks:OWNER")  # zset: ID -> at: the owner's newest messages
    webhooks_failed = _Each("webhooks:failed:OWNER")  # zset: ID that was given up -> when
    webhook_secrets = _One("webhook:secrets")  # hash: OWNER -> what its messages are signed with, encrypted
    webhook_told = _One("webhook:told")  # hash: THING -> STATE SINCE TOLD, of what operators are told

    # -- dispatchers
    dispatchers = _One("dispatchers")  # set: names
    dispatcher = _Each("dispatcher:NAME")  # string, for a minute after a heartbeat: the layout that it knows

    # -- outputs on their way into stores (docs/adr/0062).  STORE: its name
    named_stores = _One("stores")  # hash: NAME -> its record as JSON; credentials in it are sealed
    transfers = _One("transfers")  # zset: STORE with jobs that wait for it -> when it is looked at next
    transfer_queue = _Each("transfers:queue:STORE")  # zset: ID of a job with outputs for it -> when it is due
    transfer_taken = _Each("transfers:taken:STORE")  # zset: ID that somebody works on -> until when
    transfer_store = _Each("transfers:store:STORE")  # hash: of one that fails: fails, since, until, error
    transfers_failed = _Each("transfers:failed:STORE")  # zset: ID of a job whose outputs failed -> when
    transfer_bytes = _One("transfers:bytes")  # hash: STORE, "" for all -> bytes that wait
    erasures = _One("transfers:erasures")  # zset: STORE, ID, KEY to delete, since when -> when it is due
    transfer_jobs = _One("transfers:jobs")  # zset: ID of a live job with a store -> when it was looked at

    # -- the store itself
    secret_key = _One("secret_key")  # string: fingerprint of the secret.key that all this is sealed under
    store = _One("store")  # string: drawn at the store's first use: an emptied store gets another
    # hash: shift (what is added to the server's time), seen (its time when a process told how time passes)
    clock = _One("clock")
    # hash: id (of the server when leases were renewed last), until (when claims may go on after a failover)
    server = _One("server")
    schema = _One("schema")  # string: the layout of all this; where it is missing, the first (1)
    ready = _One(
        "ready"
    )  # never written: a write that changes nothing tests if Redis accepts writes, or makes it

    # -- autoscaling
    autoscaler = _One("autoscale")  # string, expires: which autoscaler is active
    autoscale_books = _One("autoscale:books")  # hash: POOL -> PoolBook as JSON
    autoscale_looks = _One("autoscale:looks")  # hash: POOL -> what was seen lately, [[AT, WAITING, ...], ...]

    # -- channels
    events = _Each("events:ID")  # everything that happens to a job
    batch_events = _Each("batch:BATCH:events")  # states of a batch's items
    owner_events = _Each("owner:OWNER")  # each status of an owner's jobs
    changes = _One("changes")  # "STATUS ID OWNER": each status of everybody's jobs
    frames = _Each("frames:ID")  # frames of its runs as their nodes sent them, while somebody listens
    # The same for who follows all jobs of a client: its id's SHA-1, or nothing for jobs that are no client's
    client_frames = _Each("clients:HASH:OWNER")
    replicas = _One("replicas")  # nobody listens: a message is a write that replicas get, and nothing stays
    alive = _Each("alive:LINE")  # says nothing; a dispatcher subscribes to it for as long as it lives
    # For dispatchers: "job PLACEMENT", "job@NODE PLACEMENT" (NODE is idle and has the models), "free",
    # "cancel RUN", "release RUN", "frames JOB", "schema"
    wake = _One("wake")
    webhook_wake = _One("wake:webhooks")  # a message is due
    transfer_wake = _One("wake:transfers")  # outputs wait for a store
    wake_nodes = _One("wake:nodes")  # something about the nodes has changed: for who keeps a list of them

    # -- RQ's own layout (2.12), one for all of its queues.  Nothing of it is read to run a job.  <mirror> is
    # the queue that shows the fleet's own jobs, <queue> the inbox of RQ's clients
    rq_job = _Each("rq:job:ID")
    rq_results = _Each("rq:results:ID")
    rq_execution = _Each("rq:execution:ID:RUN")
    rq_executions = _Each("rq:executions:ID")
    rq_queues = _One("rq:queues")
    rq_queue = _One("rq:queue:<mirror>")
    rq_started = _One("rq:wip:<mirror>")
    rq_finished = _One("rq:finished:<mirror>")
    rq_failed = _One("rq:failed:<mirror>")
    rq_canceled = _One("rq:canceled:<mirror>")
    rq_inbox = _One("rq:queue:<queue>")
    rq_inbox_started = _One("rq:wip:<queue>")
    rq_inbox_finished = _One("rq:finished:<queue>")
    rq_inbox_failed = _One("rq:failed:<queue>")
    rq_inbox_canceled = _One("rq:canceled:<queue>")
    rq_inbox_scheduled = _One("rq:scheduled:<queue>")
    rq_other_queue = _Each("rq:queue:QUEUE")
    rq_other_deferred = _Each("rq:deferred:QUEUE")
    rq_dependents = _Each("rq:job:ID:dependents")
    rq_dependencies = _Each("rq:job::ID:dependencies")
    rq_all_workers = _One("rq:workers")
    rq_workers = _One("rq:workers:<queue>")
    rq_mirror_workers = _One("rq:workers:<mirror>")
    rq_worker = _Each("rq:worker:<worker>NAME")
    rq_commands = _Each("rq:pubsub:<worker>NAME")  # channel: what RQ's tools send to a worker

    def __init__(self, namespace: str = DEFAULT_NAMESPACE) -> None:
        self.namespace = namespace
        self.rq_name = namespace
        """The name of RQ's queue that is an inbox."""
        self.rq_mirror_name = f"{namespace}.jobs"
        """The name of RQ's queue that shows the fleet's own jobs."""
        self.worker_prefix = "" if namespace == DEFAULT_NAMESPACE else f"{namespace}."
        """Prefix of dispatchers' names in RQ, which knows the workers of all queues only by name."""

    def whole(self, pattern: str) -> str:
        """Return a name or pattern of the table in its full form."""
        if not pattern.startswith("rq:"):
            return f"{self.namespace}:{pattern}"
        pattern = pattern.replace("<mirror>", self.rq_mirror_name).replace("<queue>", self.rq_name)
        return pattern.replace("<worker>", self.worker_prefix)

    def lua(self, body: str) -> str:
        """Return a script in which each ``NAME_key`` and ``NAME_key(...)`` is written out.

        Neither variables, of which a script may have 200, nor functions are made for them: Redis would make
        those anew at each call.
        """
        names = f"local RQ_NAME, WORKER_PREFIX = '{self.rq_mirror_name}', '{self.worker_prefix}'"
        return f"{names}\n{self._written(body)}"

    def _written(self, text: str) -> str:
        made, end = [], 0
        for found in _KEY.finditer(text):
            key = vars(Keyspace).get(found[1])
            if found.start() < end or not isinstance(key, (_One, _Each)):
                continue
            made.append(text[end : found.start()])
            end = found.end()
            pieces = _WORD.split(self.whole(key.pattern))
            parts, end = _arguments(text, end) if isinstance(key, _Each) else ([], end)
            if len(parts) != len(pieces) - 1:
                raise ValueError(f"{found[0]} in a script has {len(parts)} arguments, not {len(pieces) - 1}")
            whole = f"'{pieces[0]}'"
            for part, piece in zip(parts, pieces[1:], strict=True):
                whole += f" .. ({self._written(part)})" + (f" .. '{piece}'" if piece else "")
            made.append(f"({whole})")
        return "".join(made) + text[end:]


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call in a script, and where it ends."""
    found, depth, begin, quoted = list[str](), 0, start + 1, False
    for at in range(start, len(text)):
        sign = text[at]
        if sign == "'":
            quoted = not quoted
        elif quoted:
            continue
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if depth == 0 or (depth == 1 and sign == "," and not quoted):
            found.append(text[begin:at].strip())
            begin = at + 1
        if depth == 0:
            return found, at + 1
    raise ValueError("a script ends in a call")
