// What the page asks of the service, with its API key where the service wants one.

let key = sessionStorage.getItem("key");

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("key", key);
  served = undefined;
}

function headers(more = {}) {
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

// GET path, or POST body to it as JSON; the answer's JSON. Throws Refused, or AbortError.
export async function ask(path, signal, body) {
  const how = body === undefined
    ? { headers: headers(), signal }
    : { method: "POST", headers: headers({ "Content-Type": "application/json" }), signal, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, how);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The service does not answer. Is it still running?");
  }
  const text = await answer.text();
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    told = { error: { message: text.slice(0, 200) } };
  }
  if (!answer.ok) throw new Refused(answer.status, told.error?.message ?? `status ${answer.status}`);
  return told;
}

// Whether recommendations are served besides; asked once.
let served;
export function usersServed() {
  served ??= ask("/v1/recommend/version").then(() => true, () => false);
  return served;
}

// Items of these ids by id; those that the table does not have come without a title.
export async function lookup(ids, signal) {
  const wanted = [...new Set(ids)];
  const found = new Map(wanted.map((id) => [id, { item_id: id, tags: [], categories: [] }]));
  for (let at = 0; at < wanted.length; at += 500) {
    const answer = await ask("/v1/items", signal, { ids: wanted.slice(at, at + 500) });
    for (const item of answer.items) found.set(item.item_id, item);
  }
  return found;
}

// Show a picture of the service; an <img> sends no key, so with one the bytes are fetched.
export async function load(image, path) {
  if (!key) {
    image.src = path;
    return;
  }
  const answer = await fetch(path, { headers: headers() }).catch(() => null);
  if (!answer?.ok) {
    image.dispatchEvent(new Event("error"));
    return;
  }
  image.src = URL.createObjectURL(await answer.blob());
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
}

// A picture as base64 of a JPEG no larger than models look at, so that photographs are quick to
// send; and an address to show it by. Throws where the browser cannot read it.
export async function shrunk(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} is not a picture that this browser can read. Try a JPEG or PNG file.`);
  }
  const scale = Math.min(1, 640 / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const address = canvas.toDataURL("image/jpeg", 0.9);
  return { address, data: address.slice(address.indexOf(",") + 1) };
}
