// Which page is shown, by the address; the two forms; the keyboard.

import { ask, setKey, shrunk, usersServed } from "/explorer/api.js";
import { counted, el, link, notice, waiting } from "/explorer/parts.js";
import { failed, listing, one, search } from "/explorer/pages.js";
import { followReasons, user } from "/explorer/user.js";

const at = (id) => document.getElementById(id);
const page = at("page"), words = at("words"), status = at("status"), who = at("user");
const pictures = []; // that were searched by; no address holds them, so the history has their numbers
let picture = null; // of this page
let running = new AbortController();

function say(text) {
  status.textContent = text;
}

// The page that the address asks for, as nodes.
function made(asked, signal) {
  if (asked.has("item")) return one(asked.get("item"), signal);
  if (asked.has("user")) return user(asked.get("user"), signal);
  if (asked.get("q") || picture) return search(asked.get("q") ?? "", picture, signal);
  const remember = (shown) => history.replaceState({ ...history.state, shown }, "");
  return listing(asked.get("tag"), history.state?.shown, signal, remember);
}

function fillForms(asked) {
  words.value = asked.get("q") ?? "";
  who.value = asked.get("user") ?? "";
  at("chosen").hidden = !picture;
  if (picture) at("chosen").querySelector("img").src = picture.address;
}

async function show(moved) {
  const asked = new URLSearchParams(location.search);
  picture = pictures[history.state?.picture] ?? null;
  fillForms(asked);
  running.abort();
  running = new AbortController();
  const { signal } = running;
  page.setAttribute("aria-busy", "true");
  say("Loading");
  // what is quick replaces the old page at once, without a flash of grey
  const grey = setTimeout(() => page.replaceChildren(waiting()), page.children.length ? 250 : 0);
  try {
    const nodes = await made(asked, signal);
    if (signal.aborted) return;
    clearTimeout(grey);
    page.replaceChildren(...nodes.flat().filter(Boolean));
    const title = page.querySelector("h1").textContent;
    document.title = `${title} · Raycall explorer`;
    const found = page.querySelectorAll(".card").length;
    say(`${title}${found ? `, ${counted(found, "item")}` : ""}`);
    if (moved) arrive();
  } catch (error) {
    clearTimeout(grey);
    if (signal.aborted || error.name === "AbortError") return;
    document.title = "Raycall explorer";
    page.replaceChildren(error.status === 401 || error.status === 403 ? keyForm(error) : failed(error, () => show(true)));
    if (!(error.status >= 0)) console.error(error); // not the service's but the page's own
    say(error.message);
    page.querySelector("input, button, .notice a")?.focus();
  } finally {
    if (!signal.aborted) page.removeAttribute("aria-busy");
  }
}

// Back where the user was on this page, or at its head.
function arrive() {
  const left = history.state?.left;
  const there = left && [...page.querySelectorAll("a[href]")].find((a) => a.getAttribute("href") === left);
  if (there) {
    there.focus();
    there.scrollIntoView({ block: "center" });
  } else {
    window.scrollTo(0, 0);
    page.querySelector("h1")?.focus({ preventScroll: true });
  }
}

function go(parameters, from, by = null) {
  const address = Object.keys(parameters).length ? link(parameters) : "/";
  if (from) history.replaceState({ ...history.state, left: from }, "");
  history.pushState({ inside: true, picture: by ? pictures.indexOf(by) : undefined }, "", address);
  show(true);
}

function back() {
  if (history.state?.inside) history.back();
  else if (location.search) go({});
}

function keyForm(error) {
  const input = el("input", { type: "password", id: "key", autocomplete: "off", "aria-label": "API key" });
  const form = el("form", { onsubmit: (event) => { event.preventDefault(); setKey(input.value); start(); } },
    input, el("button.button", { type: "submit" }, "Use it"));
  return notice("This service wants an API key", error.message, [form], true);
}

async function choose(file) {
  if (!file) return;
  let chosen;
  try {
    chosen = await shrunk(file);
  } catch (error) {
    page.replaceChildren(failed(error, () => at("file").click()));
    say(error.message);
    return;
  }
  pictures.push(chosen);
  go(words.value.trim() ? { q: words.value.trim() } : { picture: "" }, null, chosen);
}

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = words.value.trim();
  if (text || picture) go(text ? { q: text } : { picture: "" }, null, picture);
  else words.focus();
});
at("users").addEventListener("submit", (event) => {
  event.preventDefault();
  if (who.value.trim()) go({ user: who.value.trim() });
  else who.focus();
});
at("file").addEventListener("change", (event) => {
  choose(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
at("chosen").querySelector("button").addEventListener("click", () => {
  go(words.value.trim() ? { q: words.value.trim() } : {});
});

// names that begin with what is typed
let typed = new AbortController();
async function names() {
  if (!(await usersServed())) return;
  typed.abort();
  typed = new AbortController();
  const asked = new URLSearchParams({ prefix: who.value.trim(), limit: 20 });
  const found = await ask(`/v1/recommend/users?${asked}`, typed.signal).catch(() => null);
  if (!found) return;
  at("users").hidden = false;
  at("names").replaceChildren(...found.users.map((one) => el("option", { value: one.user }, counted(one.num_events, "choice"))));
}
who.addEventListener("input", names);

// links to pages of this page change what is shown without loading anything again
document.addEventListener("click", (event) => {
  const a = event.target.closest("a[href]");
  if (!a || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const to = new URL(a.href);
  if (to.origin !== location.origin || to.pathname !== "/" || a.hash) return;
  event.preventDefault();
  go(Object.fromEntries(to.searchParams), a.getAttribute("href"));
});
page.addEventListener("open", (event) => go(event.detail));
window.addEventListener("popstate", () => show(true));

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    at("drop").hidden = false;
  });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").hidden = true; });
document.addEventListener("drop", (event) => {
  at("drop").hidden = true;
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) choose(file);
});

// Arrow keys walk through the items of a list, up and down by rows of a grid.
function walk(event) {
  const here = event.target.closest(".card, .line");
  const list = here?.closest(".grid, .list");
  if (!list) return;
  const all = [...list.querySelectorAll(".card, .line")];
  const place = all.indexOf(here);
  const { top, left } = here.getBoundingClientRect();
  const rows = (sign) => {
    const beyond = all.map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => sign * (box.top - top) > 4);
    const nearest = Math.min(...beyond.map(([, box]) => sign * (box.top - top)));
    const row = beyond.filter(([, box]) => sign * (box.top - top) < nearest + 4);
    return row.sort((a, b) => Math.abs(a[1].left - left) - Math.abs(b[1].left - left))[0]?.[0];
  };
  const to = {
    ArrowRight: () => all[place + 1], ArrowLeft: () => all[place - 1],
    ArrowDown: () => rows(1), ArrowUp: () => rows(-1), Home: () => all[0], End: () => all.at(-1),
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  to.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    words.focus();
    words.select();
  } else if (event.key === "Escape" && !at("drop").hidden) {
    at("drop").hidden = true;
  } else if (event.key === "Escape" && typing) {
    if (event.target.value) event.target.value = "";
    else if (picture) at("chosen").querySelector("button").click();
    else event.target.blur();
    event.preventDefault();
  } else if (event.key === "Escape") {
    back();
  } else if (!typing) {
    walk(event);
  } else if (event.key === "ArrowDown" && event.target === words) {
    page.querySelector(".card, .line")?.focus();
  }
});

async function start() {
  names();
  show(false);
  const version = await ask("/v1/version").catch(() => null);
  const told = version && `model ${version.model_version.slice(0, 8)} · ${counted(version.num_items, "item")} in the index · `;
  at("about").replaceChildren(told ?? "", el("a", { href: "/docs" }, "Interface"));
}

followReasons(page);
start();
