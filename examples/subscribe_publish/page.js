// The relay's page: publishes to channels, and shows what arrives on those it is subscribed to.
//
// One WebSocket carries all of it, in the subprotocol relay.v2 (v2.py): a message is a line of JSON, and behind a line
// feed the body. Each channel keeps the position up to which it has everything, and goes on from there when the
// connection comes back.
"use strict";

const PROTOCOL = "relay.v2";
const FIRST_DELAY = 500; // milliseconds
const LAST_DELAY = 15000;
const PAUSE = 30; // between two times at which what has arrived is shown, laid out once for all of it
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
let everOpened = false;
let last = 0; // number of the last command
const channels = new Map(); // name -> Channel
const unanswered = new Map(); // what was published and not answered yet: number -> {channel, body}

// -- the connection, which comes back --------------------------------------------------------------------------------

// states: "closed" (nobody wants it), "opening", "open", "waiting" (for the next attempt)
const link = { state: "closed", attempt: 0, due: 0, socket: null, timer: 0 };

function open() {
  clearTimeout(link.timer);
  const socket = new WebSocket(address, token ? [PROTOCOL, "token." + base64url(token)] : [PROTOCOL]);
  socket.binaryType = "arraybuffer";
  link.socket = socket;
  become("opening");
  socket.onopen = () => {
    everOpened = true;
    link.attempt = 0;
    become("open");
    for (const channel of channels.values()) channel.subscribe();
  };
  socket.onmessage = (event) => received(...taken(event.data));
  socket.onclose = (event) => {
    if (link.socket !== socket) return;
    if (event.code === NOT_ALLOWED && token) refuse("The token is no longer valid");
    else lost();
  };
}

function lost() {
  link.socket = null;
  // A random delay, that doubles with each failure: not all pages come back at the same moment.
  const delay = Math.min(FIRST_DELAY * 2 ** link.attempt, LAST_DELAY) * (0.5 + Math.random() / 2);
  link.attempt += 1;
  link.due = performance.now() + delay;
  link.timer = setTimeout(open, delay);
  become("waiting");
  askWhy();
}

function close() {
  clearTimeout(link.timer);
  const socket = link.socket;
  link.socket = null;
  link.attempt = 0;
  socket?.close(1000);
  become("closed");
}

function become(state) {
  link.state = state;
  if (state !== "open") {
    for (const channel of channels.values()) channel.subscribed = false;
    if (unanswered.size) {
      const { body } = [...unanswered.values()].at(-1);
      unanswered.clear();
      say("bad", "The connection was lost before the relay answered: perhaps not published.");
      if (!$("body").value) $("body").value = body;
    } else if ($("answer").dataset.kind === "good") say("", ""); // it would read as if one could publish now
  }
  showState();
  for (const channel of channels.values()) channel.show();
}

function send(command, body) {
  last += 1;
  const head = JSON.stringify({ ...command, id: last });
  link.socket.send(body === undefined ? head : `${head}\n${body}`);
  return last;
}

// The first line of a message, and its body: a string, or bytes.
function taken(data) {
  if (typeof data === "string") {
    const end = data.indexOf("\n");
    return end < 0 ? [JSON.parse(data)] : [JSON.parse(data.slice(0, end)), data.slice(end + 1)];
  }
  const bytes = new Uint8Array(data);
  const end = bytes.indexOf(10);
  return [JSON.parse(decoder.decode(bytes.subarray(0, end))), bytes.subarray(end + 1)];
}

function received(head, body) {
  const channel = channels.get(head.channel);
  if (head.do === "publish") published(head);
  else if (head.do === "subscribe") channel?.answered(head);
  else if (head.gap) channel?.gap(head.position);
  else if (!("re" in head)) channel?.arrived(body, head.position);
}

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function asText(body) {
  if (typeof body === "string") return body;
  try {
    return decoder.decode(body);
  } catch {
    return null; // bytes that are no UTF-8
  }
}

// A browser does not tell a page why a connection was refused. If the server answers otherwise, it was the token.
async function askWhy() {
  const needed = document.documentElement.dataset.token === "yes";
  if (!needed || everOpened) return;
  try {
    await fetch("healthz", { cache: "no-store" });
  } catch {
    return; // it is away
  }
  if (!wanted || link.state === "open" || everOpened) return;
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

// -- publishing ------------------------------------------------------------------------------------------------------

function say(kind, text) {
  const answer = $("answer");
  answer.dataset.kind = kind;
  answer.classList.remove("whole");
  answer.textContent = text;
}

function publish() {
  const channel = $("publish-channel");
  checkName(channel);
  if (!$("publish").reportValidity() || link.state !== "open") return;
  const body = $("body").value;
  unanswered.set(send({ do: "publish", channel: channel.value }, body), { channel: channel.value, body });
  say("", "Publishing…");
  $("body").value = "";
  $("body").focus();
}

function published({ re, error }) {
  const sent = unanswered.get(re);
  unanswered.delete(re);
  if (error === undefined) say("good", `Published to ${sent.channel}.`);
  else {
    say("bad", sentence(error));
    if (!$("body").value) $("body").value = sent.body; // nothing typed is lost
  }
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

// -- channels --------------------------------------------------------------------------------------------------------

class Channel {
  constructor(name) {
    this.name = name;
    // The golden angle: however many there are, no two have the same colour, and neighbours differ most.
    const taken = new Set([...channels.values()].map((channel) => channel.number));
    for (this.number = 0; taken.has(this.number); this.number += 1);
    this.hue = String((277 + this.number * 137.508) % 360);
    this.received = 0;
    this.position = null; // up to here it has everything
    this.subscribed = false;
    this.note = "";
    this.item = this.makeItem();
    this.show();
  }

  makeItem() {
    const item = element("li", "channel");
    item.style.setProperty("--h", this.hue);
    this.count = element("span", "count");
    this.noteItem = element("span", "note");
    const remove = element("button", "quiet", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Unsubscribe from ${this.name}`);
    remove.onclick = () => unsubscribe(this.name);
    const swatch = element("span", "swatch");
    swatch.setAttribute("aria-hidden", "true");
    item.append(swatch, element("span", "name", this.name), this.count, remove, this.noteItem);
    return item;
  }

  subscribe() {
    clearTimeout(this.timer);
    if (link.state !== "open" || channels.get(this.name) !== this) return;
    this.asked = send({ do: "subscribe", channel: this.name, after: this.position });
    this.show();
  }

  answered({ re, error, position, recovered }) {
    if (re !== this.asked) return; // an answer to an earlier one
    if (error !== undefined) {
      this.note = sentence(error);
      this.timer = setTimeout(() => this.subscribe(), LAST_DELAY * (0.5 + Math.random() / 2));
    } else {
      if (this.position !== null && !recovered) addGap(this);
      this.note = "";
      this.subscribed = true;
      this.position = position;
    }
    this.show();
  }

  arrived(body, position) {
    this.position = position;
    this.received += 1;
    addMessage(this, body);
  }

  gap(position) {
    this.position = position;
    addGap(this);
  }

  show() {
    const state = link.state !== "open" ? link.state : this.subscribed ? "open" : this.note ? "waiting" : "opening";
    this.item.dataset.state = state;
    this.count.textContent = this.received;
    this.count.setAttribute("aria-label", `${this.received} messages`);
    const words = { closed: "Not connected.", opening: "Subscribing…", open: "", waiting: "Not connected." };
    const text = (link.state === "open" && this.note) || words[state];
    if (this.noteItem.textContent !== text) this.noteItem.textContent = text;
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
  channel.subscribe();
  showChannels();
}

function unsubscribe(name) {
  const { item } = channels.get(name);
  const next = item.nextElementSibling ?? item.previousElementSibling;
  channels.delete(name);
  if (link.state === "open") send({ do: "unsubscribe", channel: name });
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

let arrived = [];
let soon = 0;

function addMessage(channel, body) {
  add({ channel, body, time: new Date() });
}

function addGap(channel) {
  add({ channel });
}

function add(arrival) {
  arrived.push(arrival);
  if (arrived.length > 2 * MOST_MESSAGES) arrived = arrived.slice(-MOST_MESSAGES); // a page that is not looked at
  soon ||= setTimeout(showArrived, PAUSE);
}

function showArrived() {
  soon = 0;
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const shown = arrived.slice(-MOST_MESSAGES);
  for (const { channel } of arrived) channel.show();
  arrived = [];
  list.append(...shown.map((arrival) => ("body" in arrival ? makeMessage(arrival) : makeGap(arrival))));
  while (list.childElementCount > MOST_MESSAGES) list.firstElementChild.remove();
  showMessages();
  if (atEnd) list.scrollTop = list.scrollHeight; // unless the reader has scrolled up
}

function makeMessage({ channel, body: data, time: now }) {
  const item = element("li", "message");
  item.style.setProperty("--h", channel.hue);
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
  return item;
}

function makeGap({ channel }) {
  return element("li", "gap", `Messages of ${channel.name} may be missing here.`);
}

// As much of a text as is shown; no character is cut in two.
function beginning(text) {
  return text.slice(0, MOST_CHARACTERS).replace(/[\uD800-\uDBFF]$/, "");
}

function hex(bytes) {
  const shown = [...bytes.subarray(0, MOST_BYTES)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${bytes.length} bytes: ${shown}${bytes.length > MOST_BYTES ? " …" : ""}`;
}

function showMessages() {
  const none = !$("messages").childElementCount;
  $("no-messages").hidden = !none;
  $("clear").disabled = none;
}

// -- the connection as a whole ---------------------------------------------------------------------------------------

function showState() {
  const { state, due, attempt } = link;
  const seconds = Math.max(1, Math.ceil((due - performance.now()) / 1000));
  const words = {
    closed: "Disconnected",
    opening: attempt ? "Connecting again…" : "Connecting…",
    open: "Connected",
    waiting: `Not connected. Again in ${seconds} s`,
  };
  document.body.dataset.state = state;
  if ($("state-text").textContent !== words[state]) $("state-text").textContent = words[state];
  $("connect").textContent = !wanted ? "Connect" : state === "waiting" ? "Try now" : "Disconnect";
  $("send").disabled = state !== "open";
}

function connect() {
  wanted = true;
  $("token-form").hidden = true;
  open();
}

function disconnect() {
  wanted = false;
  close();
}

function pressConnect() {
  if (!wanted) connect();
  else if (link.state === "waiting") open();
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
// What is cut off by an ellipsis is shown whole on a tap.
$("messages").onclick = (event) => event.target.closest(".tag")?.classList.toggle("whole");
$("answer").onclick = (event) => event.target.classList.toggle("whole");
addEventListener("online", () => link.state === "waiting" && open());
setInterval(() => link.state === "waiting" && showState(), 500);

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
