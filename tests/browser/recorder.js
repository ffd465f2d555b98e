// Runs in each page of the editor before its own scripts: keeps what the editor shows of its prompts, change by change.
(async () => {
  const until = async (ready) => {
    for (;;) {
      try {
        const found = ready();
        if (found) return found;
      } catch {}
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  const shown = (window.__shown = { changes: [], executed: [], ends: [], previews: [] });
  const pinia = await until(() => document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia);
  const store = await until(() => pinia._s.get("execution"));
  const api = await until(() => window.comfyAPI.api.api);
  const active = () => store.activePromptId ?? store.activeJobId ?? null;
  let last = "";

  function look() {
    const states = Object.values(store.nodeProgressStates);
    const change = {
      active: active(),
      title: document.title,
      progress: states.map(({ prompt_id, node_id, state, value, max }) => [prompt_id, node_id, state, value, max]),
    };
    const now = JSON.stringify(change);
    if (now !== last && shown.changes.length < 20000) shown.changes.push(change);
    last = now;
  }
  setInterval(look, 40); // titles change without a message

  const TYPES = ["execution_start", "execution_cached", "executing", "progress", "progress_state", "executed"];
  const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
  for (const type of [...TYPES, ...ENDS]) api.addEventListener(type, () => queueMicrotask(look));
  for (const type of ENDS) {
    api.addEventListener(type, ({ detail }) => shown.ends.push([detail.prompt_id, type]));
  }
  api.addEventListener("executed", ({ detail }) => {
    for (const { filename, subfolder, type } of detail.output?.images ?? []) {
      shown.executed.push({ prompt: detail.prompt_id, node: detail.node, filename, subfolder, type });
    }
  });
  api.addEventListener("b_preview_with_metadata", ({ detail }) => {
    if (shown.previews.length < 5000) shown.previews.push([detail.promptId ?? detail.jobId, active()]);
  });
})();
