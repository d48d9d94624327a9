// The server's state, and what changes it. A mark counts as saved only when the server has answered.

export const CODES = { none: ".", unwanted: "n", good: "g", unsure: "u" };
const MOST = 20000; // marks in one request

export class Server extends EventTarget {
  state = null;
  codes = new Uint8Array(0); // of each sample, as ASCII
  blind = new Uint8Array(0); // of those that are judged after a run: index -1 is the first of them
  pending = new Map(); // index -> [code, how many requests wait]
  #queue = Promise.resolve();
  #waiting = 0;
  #timer = 0;

  code(index) {
    const pending = this.pending.get(index);
    const code = index < 0 ? this.blind[-1 - index] : this.codes[index];
    return pending ? pending[0] : String.fromCharCode(code ?? 46);
  }

  saved(index) {
    return !this.pending.has(index);
  }

  start() {
    this.#poll();
    document.addEventListener("visibilitychange", () => document.hidden || this.#poll());
  }

  mark(indices, label, via) {
    for (let at = 0; at < indices.length; at += MOST) this.#markSome(indices.slice(at, at + MOST), label, via);
  }

  #markSome(at, label, via) {
    for (const index of at) this.pending.set(index, [CODES[label], (this.pending.get(index)?.[1] ?? 0) + 1]);
    this.#tell("marks", at);
    const body = { at, label, via, round: this.state.round };
    this.#send("/api/mark", body).finally(() => {
      for (const index of at) {
        const [code, waiting] = this.pending.get(index);
        if (waiting > 1) this.pending.set(index, [code, waiting - 1]);
        else this.pending.delete(index);
      }
      this.#tell("marks", at);
    });
  }

  act(name) {
    return this.#send(`/api/${name}`, {});
  }

  // One request after another, so that marks and undos keep their order.
  #send(path, body) {
    this.#waiting++;
    const done = this.#queue.then(async () => {
      try {
        const known = { since: this.state.version, round: this.state.round };
        await this.#fetch(path, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ ...known, ...body }),
        });
      } finally {
        this.#waiting--;
        this.#later(300);
      }
    });
    this.#queue = done.catch(() => {});
    return this.#queue;
  }

  async #fetch(path, options) {
    let answer, data;
    try {
      answer = await fetch(path, options);
      data = await answer.json();
    } catch (error) {
      const text = answer?.status === 403
        ? "This page is no longer let in. Open the link that the terminal shows."
        : "The server has stopped. What is marked is kept: start atu label again, and go on.";
      this.#tell("trouble", { text, lasting: true });
      throw error;
    }
    if (!answer.ok) {
      this.#tell("trouble", { text: data.error, lasting: false });
      throw new Error(data.error);
    }
    this.#take(data);
  }

  #take(data) {
    const old = this.state;
    const same = old && data.round === old.round;
    if (same && data.version < old.version) return;
    let changed = null; // all
    if (data.codes !== undefined) {
      this.codes = new TextEncoder().encode(data.codes);
      this.blind = new TextEncoder().encode(data.blind);
    } else {
      for (const [index, code] of data.changes) {
        if (index < 0) this.blind[-1 - index] = code;
        else this.codes[index] = code;
      }
      changed = data.changes.map(([index]) => index);
    }
    this.state = data;
    if (!same) this.#tell("round");
    if (changed === null || changed.length) this.#tell("marks", changed);
    this.#tell("state");
  }

  async #poll() {
    clearTimeout(this.#timer);
    if (document.hidden && this.state) return;
    if (this.#waiting === 0) {
      const known = this.state ? `?round=${this.state.round}&since=${this.state.version}` : "";
      await this.#fetch(`/api/state${known}`).catch(() => {});
    }
    this.#later(this.state?.fitted === false ? 400 : 1500);
  }

  #later(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#poll(), milliseconds);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
