// Runs in the editor's page: compares its state with what the server says it should be, between two messages.
(async () => {
  const until = async (ready) => {
    for (;;) {
      try {
        const found = ready();
        if (found) return found;
      } catch {}
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  const pinia = await until(() => document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia);
  const store = await until(() => pinia._s.get("execution"));
  const api = await until(() => window.comfyAPI.api.api);
  await until(() => api.socket?.readyState === WebSocket.OPEN && api.clientId && store.clientId);
  const workflow = () => pinia._s.get("workflow")?.activeWorkflow ?? undefined;
  const active = () => store.activePromptId ?? store.activeJobId ?? null;
  const queued = () => store.queuedPrompts ?? store.queuedJobs;
  const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
  let faults = []; // of one interleaving: the first of each kind
  let ends = {};
  for (const type of ENDS) {
    api.addEventListener(type, ({ detail }) => (ends[detail.prompt_id] ??= []).push(type));
  }

  function differences(wanted) {
    const found = [];
    const say = (what, is, should) => {
      if (JSON.stringify(is) !== JSON.stringify(should)) found.push({ what, is, should });
    };
    say("active prompt", active(), wanted.active);
    for (const state of Object.values(store.nodeProgressStates)) {
      if (!wanted.progress_of.includes(state.prompt_id)) say("progress of", state.prompt_id, wanted.progress_of);
    }
    if (wanted.progress) say("progress", store.nodeProgressStates, wanted.progress);
    const now = store._executingNodeProgress;
    if (now && !wanted.progress_of.includes(now.prompt_id)) say("progress bar of", now.prompt_id, wanted.active);
    if (wanted.active) {
      const known = queued()[wanted.active]?.nodes ?? {};
      say("nodes of the active prompt", Object.keys(known).sort(), wanted.nodes);
      say("its finished nodes", Object.keys(known).filter((node) => known[node]).sort(), wanted.executed);
    }
    say("ends", ends, wanted.ends);
    return found;
  }

  const handlers = {
    "fleet.begin": ({ prompts }) => {
      ends = {};
      store.nodeProgressStates = {}; // which nothing clears between two prompts
      for (const [id, nodes] of Object.entries(prompts)) {
        const known = { id, nodes, workflow: workflow(), promptOutput: {} };
        store.storePrompt ? store.storePrompt(known) : store.storeJob(known);
      }
    },
    "fleet.expect": (wanted) => {
      const known = new Set(faults.flatMap((fault) => fault.found.map(({ what }) => what)));
      const found = differences(wanted).filter(({ what }) => !known.has(what));
      if (found.length) faults.push({ step: wanted.step, sent: wanted.sent, found });
    },
    "fleet.end": async ({ number }) => {
      const dialogs = pinia._s.get("dialog");
      for (const { key } of [...(dialogs?.dialogStack ?? [])]) dialogs.closeDialog({ key });
      const body = JSON.stringify({ number, faults });
      faults = [];
      await fetch("/checked", { method: "POST", body });
    },
  };
  for (const [type, handler] of Object.entries(handlers)) {
    api.addEventListener(type, ({ detail }) => handler(detail));
  }
  await fetch("/ready", { method: "POST" });
})();
