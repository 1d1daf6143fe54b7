"use strict";

/* Keeps the open page as the journal stands: one stream of events, at most one fetch a second. */

(() => {
  const LEAST_MS = 1000;
  const FIRST_RETRY_MS = 1000;
  const MOST_RETRY_MS = 30000;
  const QUIET_MS = 45000;
  const ANSWER_MS = 15000;
  const OVERDUE_S = 60;

  /* A notice is shown on this page, and not again when it is loaded anew. */

  const address = location.href;
  if (new URLSearchParams(location.search).has("done")) history.replaceState(null, "", location.pathname);

  const main = document.getElementById("main");
  const pulse = document.getElementById("pulse");
  let skewMs = 0;

  /* Time. */

  const spans = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];

  function duration(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    for (const [large, unit, small, smallUnit] of spans) {
      if (whole < large) continue;
      const second = Math.floor((whole % large) / small);
      return `${Math.floor(whole / large)} ${unit}${second ? ` ${second} ${smallUnit}` : ""}`;
    }
    return `${whole} s`;
  }

  function told(time, now) {
    const at = Number(time.dataset.at);
    if (time.dataset.kind === "due") {
      if (now - at >= OVERDUE_S) return `due since ${duration(now - at)}`;
      return at - now >= 1 ? `in ${duration(at - now)}` : "now";
    }
    return now - at >= 1 ? `${duration(now - at)} ago` : "just now";
  }

  function tick() {
    if (document.hidden) return;
    const now = (Date.now() + skewMs) / 1000;
    for (const time of document.querySelectorAll('time[data-kind="due"], time[data-kind="ago"]')) {
      const words = told(time, now);
      if (time.textContent !== words) time.textContent = words;
    }
  }

  function setClock(element) {
    const now = Number(element.dataset.now);
    if (now) skewMs = now * 1000 - Date.now();
  }

  /* Changing a part of the page into what it is now, keeping what a reader holds on to. */

  const KEPT = new Set(["open", "hidden"]);

  function matches(old, fresh) {
    if (old.nodeType !== fresh.nodeType) return false;
    if (old.nodeType !== Node.ELEMENT_NODE) return true;
    return old.tagName === fresh.tagName && old.id === fresh.id;
  }

  function takeAttributes(old, fresh) {
    const keeps = old.tagName === "DETAILS" || old.tagName === "BUTTON";
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !(keeps && KEPT.has(name))) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (keeps && KEPT.has(name)) continue;
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
  }

  function become(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (old.isEqualNode(fresh)) return;
    takeAttributes(old, fresh);
    if (old.tagName === "INPUT" || "kept" in old.dataset) return;
    let at = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      let found = at;
      if (wanted.id) {
        const known = document.getElementById(wanted.id);
        if (known && known.parentNode === old) found = known;
      }
      if (found && matches(found, wanted)) {
        if (found !== at) old.insertBefore(found, at);
        else at = at.nextSibling;
        become(found, wanted);
      } else {
        old.insertBefore(document.adoptNode(wanted), at);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  async function refresh() {
    const answer = await fetch(address, {
      signal: AbortSignal.timeout(ANSWER_MS),
      headers: { Accept: "text/html", "X-Fragment": "1" },
      credentials: "same-origin",
      cache: "no-store",
    });
    if (answer.status === 401 || answer.redirected) return location.reload();
    const gone = answer.status === 404;
    if (!answer.ok && !gone) throw new Error(`HTTP ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    if (!fresh) throw new Error("no content");
    setClock(fresh);
    become(main, fresh);
    if (page.title) document.title = page.title;
    tick();
    document.dispatchEvent(new CustomEvent("page-changed"));
    return !gone;
  }

  setClock(main);
  setInterval(tick, 1000);
  document.addEventListener("page-changed", tick);

  if (!pulse || !main.dataset.live || !window.EventSource) return;

  /* The stream. */

  let source = null;
  let retryMs = FIRST_RETRY_MS;
  let retryTimer = 0;
  let fetchTimer = 0;
  let fetching = false;
  let wanted = false;
  let lastFetch = 0;
  let lastNews = 0;
  let failing = false;
  let ended = false;

  function say(state, words) {
    if (pulse.dataset.state === state && pulse.textContent === words) return;
    pulse.hidden = false;
    pulse.dataset.state = state;
    pulse.textContent = words;
  }

  async function fetchNow() {
    fetchTimer = 0;
    if (fetching || document.hidden) return;
    fetching = true;
    wanted = false;
    lastFetch = Date.now();
    try {
      if (!(await refresh())) end();
      else if (failing) {
        failing = false;
        if (source) heard();
      }
    } catch {
      failing = true;
      lost();
    } finally {
      fetching = false;
    }
    if (wanted && !failing) changed();
  }

  /* What the page was about is gone: there will be no more news of it. */

  function end() {
    ended = true;
    close();
    clearTimeout(retryTimer);
    pulse.hidden = true;
  }

  function changed() {
    wanted = true;
    if (ended || fetchTimer || fetching || document.hidden) return;
    fetchTimer = setTimeout(fetchNow, Math.max(0, lastFetch + LEAST_MS - Date.now()));
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  function lost() {
    close();
    if (document.hidden || ended) return;
    clearTimeout(retryTimer);
    const wait = retryMs * (0.75 + Math.random() / 2);
    retryMs = Math.min(MOST_RETRY_MS, retryMs * 2);
    say("reconnecting", "reconnecting");
    retryTimer = setTimeout(connect, wait);
  }

  function heard() {
    lastNews = Date.now();
    if (failing) return;
    retryMs = FIRST_RETRY_MS;
    say("live", "live");
  }

  function concerns(news) {
    if (news.all) return true;
    return main.dataset.about === "workers" ? news.workers : news.runs.length > 0;
  }

  function connect() {
    if (ended) return;
    clearTimeout(retryTimer);
    close();
    const { live, run, since } = main.dataset;
    const query = new URLSearchParams({ since, ...(run ? { run } : {}) });
    source = new EventSource(`${live}?${query}`);
    source.onopen = () => {
      heard();
      if (failing) changed();
    };
    source.addEventListener("changed", (event) => {
      heard();
      if (concerns(JSON.parse(event.data))) changed();
    });
    source.addEventListener("beat", heard);
    source.onerror = lost;
    lastNews = Date.now();
  }

  setInterval(() => {
    if (source && !document.hidden && Date.now() - lastNews > QUIET_MS) lost();
  }, 5000);

  document.addEventListener("visibilitychange", () => {
    if (ended) return;
    if (document.hidden) {
      close();
      clearTimeout(retryTimer);
      clearTimeout(fetchTimer);
      fetchTimer = 0;
      say("paused", "paused");
    } else {
      retryMs = FIRST_RETRY_MS;
      connect();
      changed();
    }
  });

  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) connect();
  });

  if (document.hidden) say("paused", "paused");
  else connect();
})();
