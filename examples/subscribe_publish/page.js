// The relay's page: publishes to channels, and shows what arrives on those it is subscribed to.
//
// What arrives on a connection is a bare body, which does not tell its channel. So each channel has a connection of its
// own, and publishing has one: there, everything that arrives is the answer to a command, in order.
"use strict";

const FIRST_DELAY = 500; // milliseconds
const LAST_DELAY = 15000;
const MOST_MESSAGES = 500;
const MOST_CHARACTERS = 2000; // of a message; a browser takes a minute to lay out a megabyte without blanks
const MOST_BYTES = 64; // of a message that is no text
const NOT_ALLOWED = 1008; // how the relay closes those whose token is gone

const $ = (id) => document.getElementById(id);
const decoder = new TextDecoder("utf-8", { fatal: true });
const address = new URL("./", location.href);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
address.hash = address.search = "";

let token = "";
let wanted = false; // whether the user wants to be connected
const channels = new Map(); // name -> Channel

// -- a connection that comes back ------------------------------------------------------------------------------------

class Link {
  // states: "closed" (nobody wants it), "opening", "open", "waiting" (for the next attempt), "refused" (no token)
  constructor({ opened, received, changed }) {
    Object.assign(this, { opened, received, changed, state: "closed", attempt: 0, due: 0, note: "" });
  }

  open() {
    clearTimeout(this.timer);
    const protocols = token ? ["relay", "token." + base64url(token)] : ["relay"];
    const socket = new WebSocket(address, protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.become("opening");
    socket.onopen = () => this.opened(this);
    socket.onmessage = (event) => this.received(event.data, this);
    socket.onclose = (event) => {
      if (this.socket !== socket) return;
      if (event.code === NOT_ALLOWED && token) refuse("The token is no longer valid");
      else this.lost(event.reason);
    };
  }

  // What it was opened for has been answered.
  ready() {
    this.attempt = 0;
    this.note = "";
    this.become("open");
  }

  lost(reason) {
    this.socket = null;
    if (this.state === "open") this.note = reason ? `Closed by the relay: ${reason}.` : "";
    // A random delay, that doubles with each failure: not all pages come back at the same moment.
    const most = Math.min(FIRST_DELAY * 2 ** this.attempt, LAST_DELAY);
    const delay = most * (0.5 + Math.random() / 2);
    this.attempt += 1;
    this.due = performance.now() + delay;
    this.timer = setTimeout(() => this.open(), delay);
    this.become("waiting");
  }

  // Give up this attempt, and try again later.
  fail(note) {
    this.note = note;
    const socket = this.socket;
    this.lost("");
    socket.close();
  }

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    this.attempt = 0;
    this.note = "";
    socket?.close(1000);
    this.become("closed");
  }

  retryNow() {
    if (this.state === "waiting") this.open();
  }

  become(state) {
    this.state = state;
    this.changed(this);
  }
}

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function asText(data) {
  if (typeof data === "string") return data;
  try {
    return decoder.decode(data);
  } catch {
    return null; // bytes that are no UTF-8
  }
}

// -- publishing ------------------------------------------------------------------------------------------------------

const unanswered = []; // what was published and not answered yet: {channel, body}
let everOpened = false;

const publisher = new Link({
  opened(link) {
    everOpened = true;
    link.ready();
  },
  received(data) {
    const sent = unanswered.shift();
    const answer = asText(data);
    if (answer === "OK") say("good", `Published to ${sent.channel}.`);
    else {
      say("bad", answer);
      if (!$("body").value) $("body").value = sent.body; // nothing typed is lost
    }
  },
  changed(link) {
    if (link.state !== "open" && unanswered.length) {
      const { body } = unanswered.at(-1);
      unanswered.length = 0;
      say("bad", "The connection was lost before the relay answered: perhaps not published.");
      if (!$("body").value) $("body").value = body;
    }
    if (link.state === "waiting") askWhy();
    showState();
  },
});

// A browser does not tell a page why a connection was refused. If the server answers otherwise, it was the token.
async function askWhy() {
  const needed = document.documentElement.dataset.token === "yes";
  if (!needed || everOpened) return;
  try {
    await fetch("healthz", { cache: "no-store" });
  } catch {
    return; // it is away
  }
  if (!wanted || publisher.state === "open" || everOpened) return;
  refuse(token ? "Refused: is the token right?" : "A token is needed");
}

function refuse(why) {
  disconnect();
  document.body.dataset.state = "refused";
  $("state-text").textContent = why;
  $("token-form").hidden = false;
  $("token").select();
  $("token").focus();
}

function say(kind, text) {
  const answer = $("answer");
  answer.dataset.kind = kind;
  answer.textContent = text;
}

function publish() {
  const channel = $("publish-channel");
  checkName(channel);
  if (!$("publish").reportValidity() || publisher.state !== "open") return;
  const body = $("body").value;
  unanswered.push({ channel: channel.value, body });
  publisher.socket.send(new TextEncoder().encode(`publish:${channel.value}:${body}`));
  say("", "Publishing…");
  $("body").value = "";
  $("body").focus();
}

// -- channels --------------------------------------------------------------------------------------------------------

class Channel {
  constructor(name) {
    this.name = name;
    this.hue = `hue${[...name].reduce((sum, letter) => sum + letter.codePointAt(0), 0) % 6}`;
    this.received = 0;
    this.subscribed = false;
    this.item = this.makeItem();
    this.link = new Link({
      opened: (link) => {
        this.subscribed = false;
        link.socket.send(new TextEncoder().encode(`subscribe:${name}`));
      },
      received: (data, link) => {
        if (this.subscribed) this.arrived(data);
        else if (asText(data) === "OK") {
          this.subscribed = true;
          link.ready();
        } else link.fail(`${asText(data)}.`);
      },
      changed: () => this.show(),
    });
    this.show();
  }

  makeItem() {
    const item = element("li", `channel ${this.hue}`);
    this.count = element("span", "count");
    this.note = element("span", "note");
    const remove = element("button", "quiet", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Unsubscribe from ${this.name}`);
    remove.onclick = () => unsubscribe(this.name);
    const swatch = element("span", "swatch");
    swatch.setAttribute("aria-hidden", "true");
    item.append(swatch, element("span", "name", this.name), this.count, remove, this.note);
    return item;
  }

  arrived(data) {
    this.received += 1;
    this.show();
    addMessage(this, data);
  }

  show() {
    if (!this.link) return;
    const { state, note, due } = this.link;
    this.item.dataset.state = state;
    this.count.textContent = this.received;
    this.count.setAttribute("aria-label", `${this.received} messages`);
    const what = { closed: "Not connected.", opening: note || "Subscribing…", open: "", waiting: note || "Not connected." };
    const text = what[state] + (state === "waiting" ? ` Again in ${seconds(due)}.` : "");
    if (this.note.textContent !== text) this.note.textContent = text;
  }
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function subscribe(name) {
  if (channels.has(name)) return;
  const channel = new Channel(name);
  channels.set(name, channel);
  $("channels").append(channel.item);
  if (wanted) channel.link.open();
  showChannels();
}

function unsubscribe(name) {
  const { link, item } = channels.get(name);
  const next = item.nextElementSibling ?? item.previousElementSibling;
  channels.delete(name);
  link.close();
  item.remove();
  showChannels();
  (next?.querySelector("button") ?? $("subscribe-channel")).focus();
}

function showChannels() {
  const names = [...channels.keys()];
  $("no-channels").hidden = names.length > 0;
  $("channel-names").replaceChildren(...names.map((name) => Object.assign(new Option(), { value: name })));
  if (names.length && !$("publish-channel").value) $("publish-channel").value = names[0];
  // So that a reload, or a link, brings the same channels.
  history.replaceState(null, "", names.length ? "#" + names.map(encodeURIComponent).join(",") : "#");
}

function checkName(field) {
  const wrong = /[\s:]/u.test(field.value);
  field.setCustomValidity(wrong ? "A channel's name has no blanks and no colon." : "");
}

// -- messages --------------------------------------------------------------------------------------------------------

function addMessage(channel, data) {
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = element("li", `message ${channel.hue}`);
  const now = new Date();
  const time = element("time", "", now.toLocaleTimeString());
  time.dateTime = now.toISOString();
  const text = asText(data);
  const body = element("div", "body", text === "" ? "empty" : text === null ? hex(data) : beginning(text));
  if (!text) body.classList.add("bytes"); // none, or none that are text
  item.append(element("span", "tag", channel.name), time, body);
  if (text?.length > MOST_CHARACTERS) {
    item.classList.add("cut");
    const note = `Cut: the first ${MOST_CHARACTERS} of ${text.length} characters are shown.`;
    item.append(element("p", "note", note));
  }
  list.append(item);
  while (list.childElementCount > MOST_MESSAGES) list.firstElementChild.remove();
  showMessages();
  if (atEnd) list.scrollTop = list.scrollHeight; // unless the reader has scrolled up
}

// As much of a text as is shown; no character is cut in two.
function beginning(text) {
  return text.slice(0, MOST_CHARACTERS).replace(/[\uD800-\uDBFF]$/, "");
}

function hex(data) {
  const bytes = new Uint8Array(data);
  const shown = [...bytes.subarray(0, MOST_BYTES)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${bytes.length} bytes: ${shown}${bytes.length > MOST_BYTES ? " …" : ""}`;
}

function showMessages() {
  const none = !$("messages").childElementCount;
  $("no-messages").hidden = !none;
  $("clear").disabled = none;
}

// -- the connection as a whole ---------------------------------------------------------------------------------------

function seconds(due) {
  return `${Math.max(1, Math.ceil((due - performance.now()) / 1000))} s`;
}

function showState() {
  const { state, due, attempt } = publisher;
  const words = {
    closed: "Disconnected",
    opening: attempt ? "Connecting again…" : "Connecting…",
    open: "Connected",
    waiting: `Not connected. Again in ${seconds(due)}`,
  };
  document.body.dataset.state = state;
  if ($("state-text").textContent !== words[state]) $("state-text").textContent = words[state];
  $("connect").textContent = !wanted ? "Connect" : state === "waiting" ? "Try now" : "Disconnect";
  $("send").disabled = state !== "open";
}

function links() {
  return [publisher, ...[...channels.values()].map((channel) => channel.link)];
}

function connect() {
  wanted = true;
  $("token-form").hidden = true;
  for (const link of links()) link.open();
}

function disconnect() {
  wanted = false;
  for (const link of links()) link.close();
}

function pressConnect() {
  if (!wanted) connect();
  else if (publisher.state === "waiting") for (const link of links()) link.retryNow();
  else disconnect();
}

document.querySelector(".skip").onclick = (event) => {
  event.preventDefault(); // the address holds the channels
  $("body").focus();
};
$("connect").onclick = pressConnect;
$("clear").onclick = () => {
  $("messages").replaceChildren();
  showMessages();
};
$("subscribe-channel").oninput = (event) => checkName(event.target);
$("publish-channel").oninput = (event) => checkName(event.target);
$("subscribe-form").onsubmit = (event) => {
  event.preventDefault();
  subscribe($("subscribe-channel").value);
  $("subscribe-channel").value = "";
};
$("publish").onsubmit = (event) => {
  event.preventDefault();
  publish();
};
$("body").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    publish();
  }
};
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value;
  everOpened = false;
  connect();
};
addEventListener("online", () => links().forEach((link) => link.retryNow()));
setInterval(() => {
  if (publisher.state === "waiting") showState();
  for (const channel of channels.values()) if (channel.link.state === "waiting") channel.show();
}, 500);

for (const name of location.hash.slice(1).split(",").filter(Boolean)) {
  try {
    subscribe(decodeURIComponent(name));
  } catch {
    // a link that somebody has mangled: that channel is not to be known
  }
}
if (document.documentElement.dataset.token === "yes") {
  document.body.dataset.state = "refused";
  $("state-text").textContent = "A token is needed";
  $("token-form").hidden = false;
} else connect();
