// A user: what they chose, what the model takes them to be interested in, what it recommends and why.

import { ask, lookup } from "/explorer/api.js";
import { chip, chips, commonTags, counted, el, heading, line, notice, titleOf } from "/explorer/parts.js";

const PAST = 60;
const BEST = 24;
const NEAREST = 4; // choices told with an interest
const SHOWN = 2; // and with an item

const hueOf = (interest) => `hsl(${(215 + 67 * interest) % 360} 60% 52%)`;

export async function user(name, signal) {
  const nobody = (error) => {
    if (error.status !== 404) throw error;
    return { ids: [], num_events: 0 };
  };
  const [past, best] = await Promise.all([
    ask(`/v1/recommend/history?${new URLSearchParams({ user: name, limit: PAST })}`, signal).catch(nobody),
    ask("/v1/recommend", signal, { user: name, k: BEST, reasons: NEAREST }),
  ]);
  const told = [...past.ids, ...best.ids, ...(best.interests ?? []).flatMap((one) => one.item_ids),
    ...(best.reasons ?? []).flatMap((one) => one.item_ids)];
  const items = told.length ? await lookup(told, signal) : new Map();
  const byModel = best.source === "model";
  const under = byModel
    ? `${counted(past.num_events, "choice")}; the model knows ${best.num_known} of ${best.num_known + best.num_unknown}. Follow a reason to see which choice it is near to.`
    : past.num_events
      ? "The model knows none of what this user chose, so what is popular is shown."
      : "Nobody of that name is known, so what is popular is shown.";
  return [
    heading(`User ${name}`, under),
    el("div.sides", {}, chosen(past, items), interests(best, items), recommended(best, items)),
  ];
}

function chosen(past, items) {
  const newest = [...past.ids].reverse();
  const rows = newest.map((id) => el("li", {}, line(items.get(id), null, { "data-chosen": id })));
  const left = past.num_events - newest.length;
  return el("section.side.past", { "aria-labelledby": "chose" },
    el("h2", { id: "chose" }, "Chose, the newest first"),
    rows.length ? el("div.scroll", {}, el("ol.list", {}, rows)) : el("p.soft", {}, "Nothing yet."),
    left > 0 ? el("p.soft", {}, `and ${counted(left, "earlier choice")}`) : null);
}

function interests(best, items) {
  const all = best.interests ?? [];
  const sum = all.reduce((total, one) => total + one.weight, 0) || 1;
  const shown = all.map((one, at) => {
    const near = [...new Set(one.item_ids)].map((id) => items.get(id));
    const bar = el("i");
    bar.style.width = `${(100 * one.weight) / sum}%`;
    const box = el("li", {},
      el("p", {}, el("span.interest", {}, `Interest ${at + 1}`), el("span.soft", {}, ` ${Math.round((100 * one.weight) / sum)} % of the weight`)),
      el("div.bar", { "aria-hidden": "true" }, bar),
      el("p.soft", {}, "Closest of their choices:"),
      el("ul.list", {}, near.map((item) => el("li", {}, line(item, null)))),
      inCommon(near));
    box.style.setProperty("--hue", hueOf(at));
    return box;
  });
  return el("section.side", { "aria-labelledby": "interests" },
    el("h2", { id: "interests" }, "Interests"),
    shown.length
      ? [shown.length === 1 ? el("p.soft", {}, "This model sums a user up in one.") : null, el("ol.list", {}, shown)]
      : el("p.soft", {}, "None: the model knows nothing of this user."));
}

function inCommon(near) {
  const common = commonTags(near);
  return common.length
    ? [el("p.soft", {}, "In common:"), chips("In common", common.map(([tag]) => chip({ tag }, tag)))]
    : null;
}

function recommended(best, items) {
  const rows = best.ids.map((id, at) => {
    const reason = best.reasons?.[at];
    const row = el("li", {}, line(items.get(id), null, { "data-why": JSON.stringify(reason?.item_ids.slice(0, SHOWN) ?? []) }), why(best, reason, at, items));
    if (reason) row.style.setProperty("--hue", hueOf(reason.interest));
    return row;
  });
  return el("section.side", { "aria-labelledby": "best" },
    el("h2", { id: "best" }, best.source === "model" ? "Recommended, and why" : "Popular"),
    rows.length
      ? el("div.scroll", {}, el("ol.list", {}, rows))
      : notice("Nothing left", "This user has chosen everything there is."));
}

function why(best, reason, at, items) {
  if (!reason) return el("p.why", {}, best.source === "popular" ? `chosen ${counted(best.scores[at], "time")}` : "");
  return el("p.why", {},
    el("span.interest", {}, `Interest ${reason.interest + 1}`), "near to",
    reason.item_ids.slice(0, SHOWN).map((id, place) => el("button", {
      type: "button", "data-near": id, title: "Show it among the choices",
    }, titleOf(items.get(id)), " ", el("span.soft", {}, reason.similarities[place].toFixed(2)))));
}

// Marks the choices that belong to what is pointed at or has the focus, and jumps to one.
export function followReasons(page) {
  const mark = (ids) => {
    for (const one of page.querySelectorAll("[data-chosen]")) one.classList.toggle("marked", ids.includes(one.dataset.chosen));
  };
  const idsAt = (target) => {
    if (target.dataset?.near !== undefined) return [target.dataset.near];
    const row = target.closest?.("[data-why]");
    return row ? JSON.parse(row.dataset.why) : null;
  };
  for (const happened of ["mouseover", "focusin"]) {
    page.addEventListener(happened, (event) => {
      const ids = idsAt(event.target.closest?.("[data-near], [data-why]") ?? event.target);
      if (ids) mark(ids);
    });
  }
  page.addEventListener("click", (event) => {
    const near = event.target.closest("[data-near]")?.dataset.near;
    if (near === undefined) return;
    const place = [...page.querySelectorAll("[data-chosen]")].find((one) => one.dataset.chosen === near);
    if (place) {
      place.focus();
      place.scrollIntoView({ block: "center", behavior: "smooth" });
      mark([near]);
    } else {
      page.dispatchEvent(new CustomEvent("open", { detail: { item: near } }));
    }
  });
}
