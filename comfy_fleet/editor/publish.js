// Adds "Publish to fleet" to the menu of ComfyUI's editor. The fleet serves this file itself; it is installed
// nowhere. It hands the open graph over as a draft, and opens the page where a person checks and publishes it:
// on another origin, because any extension of the editor could press a button here.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const STAMP = "comfy_fleet"; // in a graph's `extra`: the stored workflow and version that it was opened from
const OPEN = "fleet_workflow"; // in the page's address: a stored workflow to open
const WAIT_MS = 60_000; // for the editor to start
const workflows = () => app.extensionManager?.workflow;

function say(severity, summary, detail) {
  const toasts = app.extensionManager?.toast;
  if (toasts) toasts.add({ severity, summary, detail, life: severity === "error" ? 30_000 : 8_000 });
  else window.alert(`${summary}\n${detail ?? ""}`);
}

async function answered(response) {
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  const said = body?.error?.message ?? `the fleet answered ${response.status}`;
  throw new Error(response.status === 401 ? "you are signed out: load this page again to sign in" : said);
}

// The name under which the open graph was saved; a graph without one gets its name now.
async function nameOfOpen(graph) {
  const open = workflows()?.activeWorkflow;
  const path = (open?.path ?? "").replace(/^workflows\//, "").replace(/(\.app)?\.json$/i, "");
  if (path && !(open.isTemporary && /^unsaved workflow/i.test(path))) return path;
  const question = { title: "Publish to fleet", message: "What is this workflow called?", defaultValue: graph.extra?.[STAMP]?.workflow ?? "" };
  const dialog = app.extensionManager?.dialog;
  const name = dialog?.prompt ? await dialog.prompt(question) : window.prompt(question.message, question.defaultValue);
  return name?.trim() ?? "";
}

async function publish() {
  // A tab may only be opened in answer to the click, so before anything is sent.
  let tab = null;
  try {
    const { workflow, output } = await app.graphToPrompt();
    const name = await nameOfOpen(workflow);
    if (!name) return;
    tab = window.open("about:blank", "_blank");
    const sent = await api.fetchApi("/v1/drafts", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name, graph: output, ui: workflow }),
    });
    const { publish_url } = await answered(sent);
    if (!tab) return say("warn", "Publish to fleet", `Your browser let no tab open. Go to ${publish_url}`);
    tab.opener = null;
    tab.location.replace(publish_url);
  } catch (error) {
    tab?.close();
    say("error", "Not handed over to the fleet", error.message);
  }
}

async function showStored() {
  const tab = window.open("about:blank", "_blank");
  try {
    const { workflows_url } = await answered(await api.fetchApi("/v1/drafts"));
    if (!tab) return say("warn", "Stored workflows", `Your browser let no tab open. Go to ${workflows_url}`);
    tab.opener = null;
    tab.location.replace(workflows_url);
  } catch (error) {
    tab?.close();
    say("error", "The fleet could not be asked", error.message);
  }
}

// Opens the stored workflow that the address names, once the editor has opened what was open before.
async function openNamed() {
  const address = new URL(window.location.href);
  const reference = address.searchParams.get(OPEN);
  if (!reference) return;
  address.searchParams.delete(OPEN);
  window.history.replaceState(window.history.state, "", address);
  for (const until = Date.now() + WAIT_MS; !workflows()?.activeWorkflow && Date.now() < until; ) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  try {
    const found = await answered(await api.fetchApi(`/v1/workflows/${encodeURIComponent(reference)}/editor-graph`));
    await app.loadGraphData(found.ui, true, true, found.editor_name);
  } catch (error) {
    say("error", `${reference} was not opened`, error.message);
  }
}

// Says after a save, once for each workflow, that a draft of it needs a run. Whatever goes wrong here, the save is
// the editor's own: it has the same answer, and a frontend that saves in another way is left alone.
function watchSaves() {
  const store = api.storeUserData;
  if (typeof store !== "function") return;
  const told = new Set();
  api.storeUserData = async function (file, ...more) {
    const response = await store.call(this, file, ...more);
    if (response?.ok) void tellOfSave(file, told).catch(() => undefined);
    return response;
  };
}

async function tellOfSave(file, told) {
  const toasts = app.extensionManager?.toast;
  if (!toasts || typeof file !== "string" || !/^workflows\/(?!(.*\/)?\.).+\.json$/i.test(file) || told.has(file)) return;
  const { unrun } = await answered(await api.fetchApi("/v1/drafts")); // which waits until the save was looked at
  if (told.has(file) || !unrun.some((one) => `workflows/${one.file}` === file)) return;
  told.add(file);
  toasts.add({ severity: "info", summary: "Saved", detail: "Run it once to make a draft that can be published.", life: 8_000 });
}

app.registerExtension({
  name: "comfy_fleet.publish",
  commands: [
    { id: "comfy_fleet.publish", label: "Publish to fleet", icon: "pi pi-cloud-upload", function: publish },
    { id: "comfy_fleet.stored", label: "Stored workflows of the fleet", icon: "pi pi-list", function: showStored },
  ],
  menuCommands: [{ path: ["File"], commands: ["comfy_fleet.publish", "comfy_fleet.stored"] }],
  setup() {
    watchSaves();
    void openNamed(); // the editor goes on without it
  },
});
