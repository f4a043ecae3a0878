// Keeps the page up to date: changed parts come as HTML over server-sent events and
// are laid over the old ones, so that focus, selection and open details stay.
// Without this script the page is complete, and reloads itself.
(() => {
  "use strict";
  const body = document.body, live = document.getElementById("live"), text = document.getElementById("live-text");
  let offset = Date.parse(body.dataset.now) - Date.now(); // the node's clock, not the browser's
  let heard = 0;

  const pad = (n) => String(n).padStart(2, "0");
  const span = (ms) => {
    const s = Math.max(0, Math.floor(ms / 1000));
    if (s < 60) return s + "s";
    if (s < 3600) return Math.floor(s / 60) + "m " + pad(s % 60) + "s";
    if (s < 172800) return Math.floor(s / 3600) + "h " + pad(Math.floor(s / 60) % 60) + "m";
    return Math.floor(s / 86400) + "d " + Math.floor(s / 3600) % 24 + "h";
  };
  // ages turns absolute times, which the page has without a script, into ages.
  const ages = () => {
    const now = Date.now() + offset;
    for (const t of document.querySelectorAll("time[data-ago]")) {
      if (!t.title) t.title = t.textContent;
      const words = span(now - Date.parse(t.dateTime));
      if (t.textContent !== words) t.textContent = words;
    }
  };
  const show = () => {
    const quiet = (Date.now() - heard) / 1000;
    const on = heard > 0 && quiet < 5;
    live.className = "live " + (on ? "on" : "off");
    const words = on ? "live" : heard ? "no news for " + span(quiet * 1000) : "connecting";
    if (text.textContent !== words) text.textContent = words;
  };
  const beat = () => { ages(); show(); };

  // lay makes the old node like the new one and touches only what differs.
  const lay = (old, now) => {
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName) { old.replaceWith(now); return; }
    if (old.nodeType !== 1) { if (old.data !== now.data) old.data = now.data; return; }
    if (old.nodeName === "TIME" && old.dateTime === now.dateTime) return;
    for (const a of [...old.attributes]) {
      if (!now.hasAttribute(a.name) && !(a.name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(a.name);
    }
    for (const a of now.attributes) if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
    const have = [...old.childNodes], want = [...now.childNodes];
    want.forEach((n, i) => have[i] ? lay(have[i], n) : old.append(n));
    have.slice(want.length).forEach((n) => n.remove());
  };

  const source = new EventSource("live?revision=" + encodeURIComponent(body.dataset.revision));
  source.addEventListener("part", (e) => {
    const part = JSON.parse(e.data), old = document.getElementById(part.id);
    if (!old) return;
    const now = old.cloneNode(false);
    now.innerHTML = part.html;
    lay(old, now);
    ages();
  });
  source.addEventListener("tick", (e) => { heard = Date.now(); offset = Date.parse(e.data) - heard; beat(); });
  // The list of parts has changed, or the appliance has restarted.
  source.addEventListener("layout", () => { source.close(); location.reload(); });
  source.onerror = show;
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });
  setInterval(beat, 1000);
  ages();
})();
