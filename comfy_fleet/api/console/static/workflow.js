// A stored workflow's form: files are uploaded as they are chosen, values go to the fleet as JSON, and what they
// make is shown beside them.
"use strict";

(() => {
  const MOST_SHOWN = 6; // jobs
  const MOST_PREVIEWS = 2; // each is a stream, and browsers have six connections to a host
  const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
  const WHOLE = /^-?(0|[1-9][0-9]{0,30})$/;
  const FRACTION = /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$/;

  const form = document.getElementById("params");
  const go = document.getElementById("go");
  const status = document.getElementById("said");
  const results = document.getElementById("results");
  const uploads = new Map(); // field -> the promise of its upload
  let last = { body: "", key: "" };
  let busy = false;

  function drawn(bytes) {
    const numbers = crypto.getRandomValues(new Uint8Array(bytes));
    return [...numbers].map((one) => one.toString(16).padStart(2, "0")).join("");
  }

  // -- faults ----------------------------------------------------------------------------------------------

  const box = (field) => field.querySelector("input:not([data-slider]), textarea, select");

  function faultless() {
    for (const one of form.querySelectorAll(".wrong")) {
      one.hidden = true;
      one.textContent = "";
    }
    for (const one of form.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
    document.getElementById("form-wrong").hidden = true;
  }

  function fault(field, message) {
    const place = field.querySelector(".wrong");
    place.textContent = message;
    place.hidden = false;
    box(field).setAttribute("aria-invalid", "true");
    field.closest("details")?.setAttribute("open", "");
  }

  function shout(message) {
    const place = document.getElementById("form-wrong");
    place.textContent = message;
    place.hidden = false;
  }

  function named(name) {
    return [...form.querySelectorAll(".field")].find(
      (one) => one.dataset.field === name || (one.dataset.option === name && one.dataset.field === undefined)
    );
  }

  function refused(error) {
    const details = error.details ?? {};
    let faults = Array.isArray(details.errors) ? details.errors : [];
    faults = faults.filter((one) => typeof one.parameter === "string" && named(one.parameter) !== undefined);
    for (const one of faults) fault(named(one.parameter), String(one.message));
    if (faults.length === 0) {
      const field = named(String(details.parameter ?? details.field ?? "").replace(/^params\./, ""));
      if (field !== undefined) fault(field, error.message);
      else shout(error.message);
    }
    (form.querySelector("[aria-invalid]") ?? go).focus();
  }

  // -- values ----------------------------------------------------------------------------------------------

  // Returns a field's value as JSON; undefined: nothing is sent, null: it is at fault.
  function json(field) {
    const one = box(field);
    const { kind, widget } = field.dataset;
    if (widget === "switch") return String(one.checked);
    const place = field.querySelector(".file");
    const text = place === null ? one.value : place.dataset.asset;
    const empty = widget === "text" || widget === "line" ? text.trim() === "" && one.required : text.trim() === "";
    if (empty) {
      if (!one.required && one.validity.valid) return undefined;
      fault(field, one.required ? "This is required." : one.validationMessage);
      return null;
    }
    if (kind === "string") return JSON.stringify(text);
    // As it was typed: a seed may have more digits than a browser's numbers.
    const typed = text.trim();
    if ((kind === "integer" ? WHOLE : FRACTION).test(typed)) return typed;
    fault(field, kind === "integer" ? "This must be a whole number." : "This must be a number.");
    return null;
  }

  function body() {
    const values = [];
    let right = true;
    for (const field of form.querySelectorAll("[data-field]")) {
      const value = json(field);
      if (value === null) right = false;
      else if (value !== undefined) values.push(`${JSON.stringify(field.dataset.field)}:${value}`);
    }
    const all = [`"params":{${values.join(",")}}`];
    for (const field of form.querySelectorAll("[data-option]")) {
      const text = box(field).value.trim();
      if (text === "") continue;
      const number = field.dataset.option === "priority";
      if (number && !WHOLE.test(text)) {
        fault(field, "This must be a whole number.");
        right = false;
      } else all.push(`${JSON.stringify(field.dataset.option)}:${number ? text : JSON.stringify(text)}`);
    }
    return right ? `{${all.join(",")}}` : null;
  }

  async function answered(response) {
    const text = await response.text();
    try {
      return JSON.parse(text);
    } catch {
      return { error: { message: `The fleet answered ${response.status}.` } };
    }
  }

  async function submit() {
    if (busy || go.disabled) return;
    busy = true;
    go.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
    faultless();
    try {
      if (uploads.size > 0) {
        status.textContent = "waits for the upload";
        await Promise.allSettled([...uploads.values()]);
      }
      const made = body();
      if (made === null) {
        status.textContent = "";
        form.querySelector("[aria-invalid]").focus();
        return;
      }
      // The same once more after a lost answer makes no second job.
      if (made !== last.body) last = { body: made, key: drawn(16) };
      status.textContent = "is being submitted";
      const response = await fetch(form.dataset.submit, {
        method: "POST",
        headers: { "Content-Type": "application/json", "Idempotency-Key": last.key },
        body: made,
      });
      const answer = await answered(response);
      if (response.status < 500) last = { body: "", key: "" }; // else the job may have been made
      status.textContent = "";
      if (response.status === 401) shout("You are signed out: sign in in another tab, then submit again.");
      else if (!response.ok) refused(answer.error);
      else {
        status.textContent = "submitted";
        add(answer.id);
        // On a phone, results are below the form.
        results.firstElementChild.scrollIntoView({ block: "nearest" });
      }
    } catch {
      status.textContent = "";
      shout("The fleet can't be reached. Submit again: if the job was made, this makes no second one.");
    } finally {
      busy = false;
      go.removeAttribute("aria-disabled");
    }
  }

  // -- files -----------------------------------------------------------------------------------------------

  function chosen(field) {
    const place = field.querySelector(".file");
    const said = place.querySelector("[data-said]");
    const [file] = box(field).files;
    place.dataset.asset = "";
    place.querySelector("img").hidden = true;
    place.querySelector("[data-clear]").hidden = file === undefined;
    field.querySelector(".wrong").hidden = true;
    box(field).removeAttribute("aria-invalid");
    uploads.delete(field);
    if (file === undefined) {
      said.textContent = "";
      return;
    }
    if (file.size > Number(place.dataset.most ?? Infinity)) {
      fault(field, "This file is too large.");
      return;
    }
    said.textContent = "is being uploaded";
    const content = new FormData();
    content.append("file", file, file.name || "file");
    const sent = fetch(form.dataset.assets, { method: "POST", body: content })
      .then(async (response) => {
        const answer = await answered(response);
        if (uploads.get(field) !== sent) return; // another one was chosen meanwhile
        if (!response.ok) {
          said.textContent = "";
          fault(field, answer.error.message);
          return;
        }
        place.dataset.asset = answer.id;
        said.textContent = "uploaded";
        if (!file.type.startsWith("image/")) return;
        const picture = place.querySelector("img");
        picture.alt = file.name;
        picture.src = `${form.dataset.assets}/${answer.id}/content?format=webp&width=256`;
        picture.hidden = false;
      })
      .catch(() => {
        if (uploads.get(field) !== sent) return;
        said.textContent = "";
        fault(field, "The upload has failed: choose the file again.");
      })
      .finally(() => {
        if (uploads.get(field) === sent) uploads.delete(field);
      });
    uploads.set(field, sent);
  }

  // -- what the jobs make ----------------------------------------------------------------------------------

  function remember() {
    const query = new URLSearchParams(location.search);
    query.delete("job");
    for (const one of results.children) query.append("job", one.dataset.job);
    history.replaceState(null, "", query.size > 0 ? `?${query}` : location.pathname);
  }

  function add(job) {
    if (!ID.test(job)) return;
    document.getElementById("nothing").hidden = true;
    const card = document.createElement("article");
    card.className = "card result";
    card.dataset.job = job;
    card.setAttribute("aria-label", `Job ${job.slice(0, 8)}`);
    const preview = document.createElement("figure");
    preview.className = "preview";
    preview.hidden = true;
    const picture = document.createElement("img");
    picture.alt = "Preview of what the job is making";
    preview.append(picture);
    const part = document.createElement("div");
    part.id = `made-${job}`;
    part.className = "live";
    part.dataset.topics = "jobs";
    part.setAttribute("hx-get", `${form.dataset.made}${job}`);
    part.setAttribute("hx-trigger", "again");
    part.setAttribute("hx-swap", "morph:innerHTML");
    card.append(part, preview);
    results.prepend(card);
    while (results.children.length > MOST_SHOWN) drop(results.lastElementChild);
    for (const one of [...results.children].slice(MOST_PREVIEWS)) one.dispatchEvent(new Event("gone"));
    htmx.process(part);
    htmx.trigger(part, "again");
    watch(card, part);
    remember();
  }

  function drop(card) {
    card.dispatchEvent(new Event("gone"));
    card.remove();
  }

  function watch(card, part) {
    const preview = card.querySelector(".preview");
    const frames = new EventSource(`${form.dataset.events}${card.dataset.job}/events`);
    const end = () => {
      frames.close();
      preview.hidden = true;
    };
    frames.addEventListener("preview", (event) => {
      const seen = JSON.parse(event.data);
      if (!/^image\/(jpeg|png|webp)$/.test(seen.content_type)) return;
      preview.firstElementChild.src = `data:${seen.content_type};base64,${seen.data_base64}`;
      preview.hidden = false;
    });
    for (const name of ["status", "progress"]) {
      frames.addEventListener(name, () => {
        if (part.dataset.topics !== undefined && !part.classList.contains("htmx-request")) {
          htmx.trigger(part, "again");
        }
      });
    }
    frames.onerror = () => {
      if (frames.readyState === EventSource.CLOSED) end();
    };
    card.addEventListener("gone", end);
    window.addEventListener("pagehide", end);
    // What has ended changes no more.
    part.addEventListener("htmx:afterSettle", () => {
      if (part.querySelector("[data-ended]") === null) return;
      delete part.dataset.topics;
      end();
    });
  }

  // -- what people do --------------------------------------------------------------------------------------

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("change", (event) => {
    if (event.target.type === "file") chosen(event.target.closest(".field"));
  });
  form.addEventListener("input", (event) => {
    const field = event.target.closest(".field");
    const slider = field?.querySelector("[data-slider]");
    if (slider === null || slider === undefined) return;
    if (event.target === slider) box(field).value = slider.value;
    else slider.value = event.target.value;
  });
  form.addEventListener("click", (event) => {
    const button = event.target.closest("button[type=button]");
    if (button === null) return;
    const field = button.closest(".field");
    if (button.dataset.random !== undefined) {
      const most = BigInt(button.dataset.most || Number.MAX_SAFE_INTEGER);
      box(field).value = String(BigInt(`0x${drawn(6)}`) % (most + 1n));
    } else if (button.dataset.clear !== undefined) {
      box(field).value = "";
      if (box(field).type === "file") chosen(field);
      box(field).focus();
    }
  });

  window.addEventListener("load", () => {
    for (const job of new URLSearchParams(location.search).getAll("job").slice(0, MOST_SHOWN).reverse()) add(job);
  });
})();
