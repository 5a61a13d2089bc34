"use strict";

const LOGGED_OUT = 4401, SILENCE = 10000, FIRST_WAIT = 500, MOST_WAIT = 15000; // the last three in milliseconds
const $ = (selector) => document.querySelector(selector);
const section = (channel) => $(`[data-channel="${channel}"]`);
const positions = {}; // up to where this tab has each channel
let socket, attempt = 0, watchdog, timer;

function show({ channel, id, author, text }, missed) {
  const list = section(channel).querySelector("ul");
  if (list.querySelector(`[data-id="${id}"]`)) return; // it was in the list that was loaded
  const item = document.createElement("li");
  item.dataset.id = id;
  item.textContent = `${author}: ${text}`;
  item.classList.toggle("missed", Boolean(missed));
  list.append(item);
}

// What is kept, for a tab that is new or has missed too much. What comes meanwhile is shown too, and nothing twice.
async function load(channel, missed) {
  const response = await fetch("/notices/" + channel, { cache: "no-store" });
  if (!response.ok) throw new Error(response.status);
  for (const notice of await response.json()) show(notice, missed);
  const items = [...section(channel).querySelectorAll("li")];
  section(channel).querySelector("ul").append(...items.sort((one, other) => one.dataset.id - other.dataset.id));
}

function received({ channel, position, notice, joined, recovered, gap, members, beat }) {
  clearTimeout(watchdog);
  watchdog = setTimeout(lost, SILENCE);
  if (beat) return;
  if (notice) show(notice, socket.joining.has(channel)); // what comes before "joined" was missed
  if (members) section(channel).querySelector(".members").textContent = Object.keys(members).sort().join(", ");
  if (joined) {
    attempt = 0;
    socket.joining.delete(channel);
    $("#worker").textContent = joined;
    if (!socket.joining.size) state("live");
  }
  if (gap !== undefined || (joined && !recovered)) {
    load(channel, channel in positions).catch(() => { delete positions[channel]; lost(); });
  }
  if (position) positions[channel] = position;
}

function connect() {
  socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/live");
  socket.joining = new Set([...document.querySelectorAll("[data-channel]")].map((item) => item.dataset.channel));
  socket.onopen = () => socket.send(JSON.stringify(positions));
  socket.onmessage = (event) => received(JSON.parse(event.data));
  socket.onclose = (event) => (event.code === LOGGED_OUT ? location.assign("/") : lost(event));
  watchdog = setTimeout(lost, SILENCE);
}

// Come back after a random time that doubles with each failure, so that not all pages come at the same moment.
function lost(event) {
  if (event && attempt) leaveIfLoggedOut();
  clearTimeout(watchdog);
  clearTimeout(timer);
  socket.onclose = socket.onmessage = null;
  socket.close();
  state("coming back");
  timer = setTimeout(connect, Math.min(FIRST_WAIT * 2 ** attempt++, MOST_WAIT) * (0.5 + Math.random() / 2));
}

// A browser does not tell why it could not connect.
async function leaveIfLoggedOut() {
  const response = await fetch("/notices/" + $("[data-channel]").dataset.channel, { method: "HEAD" }).catch(() => ({}));
  if (response.status === 401) location.assign("/");
}

function state(text) {
  $("#state").textContent = text;
  $("#state").dataset.state = text === "live" ? "open" : "closed";
}

addEventListener("offline", () => lost());
addEventListener("online", () => { attempt = 0; lost(); });
$("#notify").onsubmit = async (event) => {
  event.preventDefault();
  const response = await fetch("/notices", { method: "POST", body: new FormData(event.target) });
  if (response.ok) $("#text").value = "";
};
connect();
