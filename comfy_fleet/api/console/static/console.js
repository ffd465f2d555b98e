// Keeps the console's pages up to date: a stream says that something has happened, and what shows it is asked for anew.
"use strict";

(() => {
  const LEAST_GAP_MS = 250; // between two updates of one part
  const SLOW_MS = 5000; // how often a part is asked for while there is no stream
  const SHOWN_MS = 6000; // how long a message stays

  // -- messages ------------------------------------------------------------------------------------------

  function tell(text, wrong) {
    const place = document.getElementById("told");
    const one = document.createElement("p");
    one.textContent = text;
    one.className = wrong ? "toast wrong" : "toast";
    if (wrong) one.setAttribute("role", "alert");
    place.append(one);
    while (place.children.length > 4) place.firstChild.remove();
    setTimeout(() => one.remove(), wrong ? 2 * SHOWN_MS : SHOWN_MS);
  }

  document.addEventListener("done", (event) => tell(String(event.detail.value)));

  document.addEventListener("htmx:responseError", (event) => {
    const request = event.detail.xhr;
    let message = `The fleet answered ${request.status}`;
    try {
      message = JSON.parse(request.responseText).error.message;
    } catch {
      // it was no error of the fleet's own
    }
    if (request.status === 401) message = "You are signed out: load this page again to sign in.";
    if (event.detail.requestConfig.verb !== "get" || request.status === 401) tell(message, true);
  });

  document.addEventListener("htmx:sendError", (event) => {
    if (event.detail.requestConfig.verb !== "get") tell("The fleet can't be reached; nothing was done.", true);
  });

  // -- parts that change ---------------------------------------------------------------------------------

  const waiting = new Map(); // part -> when it may be asked for next, or Infinity while it is being asked for

  function refresh(part) {
    const next = waiting.get(part);
    if (next === undefined || next.at <= performance.now()) ask(part);
    else next.again = true;
  }

  function ask(part) {
    waiting.set(part, { at: Infinity, again: false, since: performance.now() });
    htmx.trigger(part, "again");
  }

  document.addEventListener("htmx:afterRequest", (event) => {
    const part = event.detail.elt;
    const state = waiting.get(part);
    if (state === undefined || !part.matches("[data-topics]")) return;
    const took = performance.now() - state.since;
    const gap = Math.max(0, Math.max(LEAST_GAP_MS, 3 * took) - took);
    state.at = performance.now() + gap;
    setTimeout(() => {
      if (state.again && part.isConnected) ask(part);
    }, gap);
  });

  function happened(topics) {
    if (document.hidden) return;
    for (const part of document.querySelectorAll("[data-topics]")) {
      if (part.dataset.topics.split(" ").some((topic) => topics.includes(topic))) refresh(part);
    }
  }

  const ALL = ["nodes", "jobs"];
  document.addEventListener("done", () => happened(ALL));

  // -- the stream ----------------------------------------------------------------------------------------

  let stream = null;
  let live = false;
  let again = false;

  function show(state, words) {
    const place = document.getElementById("link-state");
    if (place.dataset.state === state) return;
    place.dataset.state = state;
    place.querySelector(".words").textContent = words;
  }

  function open() {
    if (stream !== null || document.hidden) return;
    stream = new EventSource(document.body.dataset.live);
    stream.addEventListener("hello", () => {
      live = true;
      show("live", "live");
      if (again) happened(ALL); // what was missed meanwhile
      again = true;
    });
    stream.addEventListener("change", (event) => {
      const news = JSON.parse(event.data);
      const topics = [];
      if (news.nodes) topics.push("nodes");
      if (Object.keys(news.jobs).length > 0) topics.push("jobs");
      happened(topics);
      document.dispatchEvent(new CustomEvent("fleet:news", { detail: news }));
    });
    stream.onerror = () => {
      live = false;
      show("away", "not connected");
      // Refused for good, such as for too many streams: then the parts are asked for now and then.
      if (stream !== null && stream.readyState === EventSource.CLOSED) stream = null;
    };
  }

  function close() {
    if (stream !== null) stream.close();
    stream = null;
    live = false;
  }

  // A page that nobody sees holds no stream: a browser has only a few connections for all its tabs.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      close();
      return;
    }
    open();
    happened(ALL);
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    open();
    happened(ALL);
  });

  setInterval(() => {
    if (live || document.hidden) return;
    open();
    happened(ALL);
  }, SLOW_MS);

  // What moves by itself is asked for every second.
  setInterval(() => {
    if (document.hidden) return;
    for (const part of document.querySelectorAll("[data-topics]")) {
      if (part.querySelector("[data-moving]") !== null) refresh(part);
    }
  }, 1000);

  // -- previews ------------------------------------------------------------------------------------------

  function preview() {
    const place = document.querySelector("[data-preview]");
    if (place === null) return;
    const frames = new EventSource(place.dataset.preview);
    frames.addEventListener("preview", (event) => {
      const seen = JSON.parse(event.data);
      if (!/^image\/(jpeg|png|webp)$/.test(seen.content_type)) return;
      place.querySelector("img").src = `data:${seen.content_type};base64,${seen.data_base64}`;
      place.hidden = false;
    });
    frames.addEventListener("status", (event) => {
      if (["queued", "running", "canceling"].includes(JSON.parse(event.data).status)) return;
      frames.close();
      place.hidden = true;
      happened(["jobs"]);
    });
    window.addEventListener("pagehide", () => frames.close());
  }

  // -- filters -------------------------------------------------------------------------------------------

  function filtered(form) {
    const wanted = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...wanted]) if (value === "") wanted.delete(name);
    const part = document.getElementById("live");
    const query = `?${wanted}`;
    history.replaceState(null, "", wanted.size > 0 ? query : location.pathname);
    part.setAttribute("hx-get", query);
    htmx.process(part);
    refresh(part);
  }

  let typed = 0;
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-filters]");
    if (form === null) return;
    clearTimeout(typed);
    typed = setTimeout(() => filtered(form), event.target.matches("input") ? 250 : 0);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form[data-filters]")) return;
    event.preventDefault();
    filtered(event.target);
  });

  document.addEventListener("DOMContentLoaded", () => {
    open();
    preview();
  });
})();
