// Pieces of the page. Text goes in as text, never as HTML.

import { load } from "/explorer/api.js";

// An element with attributes and children: el("a.chip", {href}, "text", ...).
export function el(kind, attributes = {}, ...children) {
  const [name, ...classes] = kind.split(".");
  const made = document.createElement(name);
  made.classList.add(...classes);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) made.addEventListener(attribute.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(attribute, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export const link = (parameters) => `/?${new URLSearchParams(parameters)}`;
export const titleOf = (item) => item.title || item.item_id;
export const number = (value) => value.toLocaleString("en");
export const counted = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

// The same colour for the same word, dark enough for white letters.
export function hue(word) {
  let sum = 0;
  for (const letter of word) sum = (sum * 31 + letter.codePointAt(0)) % 360;
  return `hsl(${sum} 42% 42%)`;
}

// A similarity to two places; 1.00 is kept for what is the same.
const likenessOf = (value) => (value >= 0.995 && value < 0.9995 ? "0.99" : value.toFixed(2));

export function thumb(item, likeness) {
  const box = el("span.thumb");
  const bare = () => {
    box.classList.add("bare");
    box.style.background = hue(item.item_id);
    box.prepend(el("span.letter", { "aria-hidden": "true" }, [...titleOf(item)][0]?.toUpperCase() ?? "?"));
  };
  if (item.picture) {
    const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
    image.addEventListener("error", () => { image.remove(); bare(); }, { once: true });
    load(image, item.picture);
    box.append(image);
  } else {
    bare();
  }
  if (likeness !== undefined) {
    box.append(el("span.likeness", { title: "Similarity, at most 1" },
      el("span.hidden", {}, "similarity "), likenessOf(likeness)));
  }
  return box;
}

export function year(item) {
  return item.published_at ? item.published_at.slice(0, 4) : null;
}

function about(item) {
  return [year(item), ...item.categories].filter(Boolean).slice(0, 3).join(" · ");
}

export function card(item, likeness) {
  return el("li", {}, el("a.card", { href: link({ item: item.item_id }) },
    thumb(item, likeness),
    el("span.words", {}, el("b", {}, titleOf(item)), el("span.soft", {}, about(item)))));
}

export function grid(cards, label) {
  return el("ul.grid", { "aria-label": label }, cards);
}

export function waiting(many = 12) {
  const empty = () => el("li", { "aria-hidden": "true" }, el("span.card.waiting", {}, el("span.thumb"), el("span.words")));
  return el("div", { "aria-busy": "true" }, el("ul.grid", {}, Array.from({ length: many }, empty)));
}

// An item as a line of a list.
export function line(item, more, attributes = {}) {
  return el("a.line", { href: link({ item: item.item_id }), ...attributes },
    thumb(item), el("span", {}, el("b", {}, titleOf(item)), el("span.soft", {}, " ", about(item)), more));
}

export function chip(parameters, text, small) {
  return el("li", {}, el("a.chip", { href: link(parameters) }, text, small === undefined ? null : el("small", {}, small)));
}

export const chips = (label, made) => el("ul.row", { "aria-label": label }, made);

export function notice(title, text, more = [], bad = false) {
  return el(bad ? "div.notice.bad" : "div.notice", bad ? { role: "alert" } : {}, el("h2", {}, title), el("p", {}, text), more);
}

export function heading(text, under) {
  return [el("h1", { tabindex: "-1" }, text), under ? el("p.soft", {}, under) : null];
}

// What the tags of items have in common, the most frequent first.
export function commonTags(items, most = 5) {
  const counts = new Map();
  for (const item of items) {
    const own = new Set([...item.tags, ...item.categories].map((tag) => tag.replace(/^#/, "").toLowerCase()));
    for (const tag of own) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  }
  return [...counts].filter(([, count]) => count > 1).sort((a, b) => b[1] - a[1]).slice(0, most);
}
