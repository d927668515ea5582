// The pages of items: all of them, those of a tag, what a search finds, one with its neighbours.

import { ask, lookup, usersServed } from "/explorer/api.js";
import { card, chip, chips, counted, el, grid, heading, link, notice, number, thumb, titleOf, year } from "/explorer/parts.js";

const PAGE = 30;
const FOUND = 30;

const percent = (share) => `${Math.round(share * 100)} %`;

// All items, or those of a tag. `shown` is how many were shown when the page was left.
export async function listing(tag, shown, signal, remember) {
  const asked = (offset, limit) => {
    const parameters = { offset, limit, pictures_first: true, ...(tag ? { tag } : {}) };
    return ask(`/v1/items?${new URLSearchParams(parameters)}`, signal);
  };
  const [first, tags, users] = await Promise.all([
    asked(0, Math.min(100, Math.max(PAGE, shown ?? 0))),
    tag ? null : ask("/v1/tags?limit=12", signal),
    tag ? null : usersServed().then((yes) => (yes ? ask("/v1/recommend/users?limit=6", signal) : null)),
  ]);
  if (!first.num_items) {
    const all = el("a.button", { href: "/" }, "All items");
    return tag
      ? [heading(`Tag: ${tag}`), notice("No items", `No item has the tag “${tag}”.`, [all])]
      : [heading("Items"), notice("No items", "The table of items is empty.")];
  }
  let cards = first.items.map((item) => card(item));
  const found = grid(cards, "Items");
  const more = el("button.button.quiet", { type: "button" });
  const relabel = () => {
    more.textContent = `Show more (${number(first.num_items - found.children.length)} left)`;
    more.hidden = found.children.length >= first.num_items;
  };
  more.addEventListener("click", async () => {
    more.disabled = true;
    try {
      const next = await asked(found.children.length, PAGE);
      cards = next.items.map((item) => card(item));
      found.append(...cards);
      remember(found.children.length);
      relabel();
      cards[0]?.querySelector("a").focus();
    } catch (error) {
      if (error.name !== "AbortError") more.textContent = `${error.message} Try again`;
    }
    more.disabled = false;
  });
  relabel();
  const under = tag
    ? [counted(first.num_items, "item"), " · ", el("a", { href: "/" }, "all items")]
    : `${counted(first.num_items, "item")}, the newest with a picture first. Open one to see its neighbours.`;
  return [
    heading(tag ? `Tag: ${tag}` : "Items", under),
    users?.users.length ? el("section", {}, el("h2", {}, "See what would be recommended to"),
      chips("Users", users.users.map((one) => chip({ user: one.user }, one.user, counted(one.num_events, "choice"))))) : null,
    tags?.tags.length ? el("section", {}, el("h2", {}, "Frequent tags"),
      chips("Frequent tags", tags.tags.map((one) => chip({ tag: one.tag }, one.tag, number(one.num_items))))) : null,
    el("section", {}, found, el("div.more", {}, more)),
  ];
}

function suggestions(answer, label) {
  if (!answer.tags.length) return el("p.soft", {}, "The nearest items have no tags to suggest.");
  return chips(label, answer.tags.map((one) => chip({ tag: one.tag }, one.tag, percent(one.score))));
}

const TAG_HINT = "Of the nearest items, by similarity, so many have the tag.";

// The nearest items of words, a picture or both.
export async function search(words, picture, signal) {
  const content = { ...(words ? { text: words } : {}), ...(picture ? { image: picture.data } : {}) };
  const [near, tags] = await Promise.all([
    ask("/v1/knn", signal, { queries: [content], k: FOUND }),
    ask("/v1/tags", signal, { ...content, k: 8 }),
  ]);
  const { ids, scores } = near.results[0];
  const items = await lookup(ids, signal).catch((error) => { if (ids.length) throw error; return new Map(); });
  const what = [words ? `“${words}”` : null, picture ? "the picture" : null].filter(Boolean).join(" and ");
  if (!ids.length) return [heading(`Nearest to ${what}`), notice("Nothing found", "The index holds no items.")];
  return [
    heading(`Nearest to ${what}`, "By the model's similarity of meaning and looks; 1 is the same."),
    el("section", {}, el("h2", { title: TAG_HINT }, "Suggested tags"), suggestions(tags, "Suggested tags")),
    el("section", {}, grid(ids.map((id, at) => card(items.get(id), scores[at])), "Found items")),
  ];
}

// One item: what is told of it, tags that its neighbours suggest, its neighbours.
export async function one(id, signal) {
  const quiet = (error) => { if (error.name === "AbortError") throw error; return error; };
  const [item, related, tags] = await Promise.all([
    ask(`/v1/items/${encodeURIComponent(id)}`, signal),
    ask(`/v1/related?${new URLSearchParams({ item_id: id, k: 24 })}`, signal).catch(quiet),
    ask("/v1/tags", signal, { item_id: id, k: 8 }).catch(quiet),
  ]);
  const own = [...new Map(item.tags.map((tag) => [tag.replace(/^#/, "").toLowerCase(), tag])).values()];
  const facts = el("div.facts", {},
    item.description ? el("p.description", {}, item.description) : null,
    own.length ? [el("h2", {}, "Tags"), chips("Tags", own.map((tag) => chip({ tag }, tag)))] : null,
    tags instanceof Error ? null : [el("h2", { title: TAG_HINT }, "Suggested tags"), suggestions(tags, "Suggested tags")],
    el("p.soft", {}, `id ${item.item_id}`));
  const neighbours = related instanceof Error
    ? notice("No neighbours", related.status === 404 ? "This item is in the table but not in the index." : related.message)
    : grid(related.related.map((near) => card(near.item, near.similarity)), "Neighbours");
  const picture = thumb(item);
  picture.querySelector("img")?.setAttribute("alt", `Picture of ${titleOf(item)}`);
  const told = [year(item), item.domain, item.categories.join(" · ")].filter(Boolean).join(" · ");
  return [
    heading(titleOf(item), told),
    el("div.item", {}, el("div.large", {}, picture, facts),
      el("div", {}, el("h2", {}, "Nearest items"), neighbours)),
  ];
}

// What did not work; the same again where it might work then.
export const failed = (error, again) => {
  const known = { 404: "Not there", 422: "That cannot be searched for" }[error.status];
  const once = el("button.button", { type: "button", onclick: again }, "Try again");
  return notice(known ?? "That did not work",
    error.message.replace(/^(queries\[0\]|tags)\./, ""), // where in the request is nobody's business
    [el("p.row", {}, known ? null : once, el(known ? "a.button" : "a.button.quiet", { href: link({}) }, "All items"))], true);
};
