// The public interface under /v1, and what went wrong with it in words.

const KEY = "vitfit-key";
let remembered = "";

export const key = {
  get: () => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return remembered; } },
  set: (value) => { remembered = value; try { value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY); } catch { /* this page only */ } },
};

// title, detail, field and hint are of a problem document (RFC 9457); status 0: the service did not answer.
export class Problem extends Error {
  constructor({ status = 0, title = "Something went wrong", detail = "", field = null, hint = null }) {
    super(detail || title);
    Object.assign(this, { status, title, detail, field, hint });
  }
}

const gone = () => new Problem({ title: "The service does not answer",
  detail: "It was stopped, or this computer is not connected to it.", hint: "Start it with `vitfit serve`; this page asks again when you reload it" });

const refusal = async (response) => {
  let document_ = {};
  try { document_ = await response.json(); } catch { /* not ours: a proxy's page, say */ }
  return new Problem({ title: response.statusText || `Status ${response.status}`, ...document_, status: response.status });
};

export const send = async (method, path, { body, headers = {}, signal } = {}) => {
  const given = { ...headers }, secret = key.get();
  if (secret) given.authorization = `Bearer ${secret}`;
  if (body !== undefined && !(body instanceof Blob)) given["content-type"] ??= "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: given, signal, credentials: "same-origin",
      body: body === undefined || body instanceof Blob ? body : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw gone();
  }
  if (!response.ok && response.status !== 304) throw await refusal(response);
  return response;
};

export const get = async (path, rest) => (await send("GET", path, rest)).json();
export const post = async (path, body, rest = {}) => (await send("POST", path, { ...rest, body })).json();

export const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

// Saves an answer as a file; a link alone could not carry the key.
export const download = async (path, filename) => {
  const blob = await (await send("GET", path)).blob();
  save(blob, filename);
};

export const save = (blob, filename) => {
  const url = URL.createObjectURL(blob), link = document.createElement("a");
  link.href = url;
  link.download = filename;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
};

// Server-sent events over fetch, for EventSource cannot send a key. Goes on after the last id when the service went away;
// ends when the server ends the stream after an event that `isLast` knows.
export const events = async (path, { onEvent, onState = () => {}, isLast = () => false, signal }) => {
  let last = "", wait = 500;
  while (!signal?.aborted) {
    try {
      const response = await send("GET", path, { signal, headers: { accept: "text/event-stream", ...(last && { "last-event-id": last }) } });
      onState("connected");
      wait = 500;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "", event = { type: "message", data: [] };
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const lines = (rest + value).split(/\r\n|\n|\r/);
        rest = lines.pop();
        for (const line of lines) {
          if (line === "") {
            if (event.data.length) {
              const found = { type: event.type, id: last, data: JSON.parse(event.data.join("\n")) };
              onEvent(found);
              if (isLast(found)) { await reader.cancel(); return; }
            }
            event = { type: "message", data: [] };
          } else if (!line.startsWith(":")) {
            const at = line.indexOf(":"), field = at < 0 ? line : line.slice(0, at), text = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
            if (field === "event") event.type = text;
            else if (field === "data") event.data.push(text);
            else if (field === "id") last = text;
          }
        }
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    onState("waiting");
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(2 * wait, 5_000);
  }
};
