"use strict";

const LOGGED_OUT = 4401;
const MOST_WAIT = 15000; // milliseconds
const element = (id) => document.getElementById(id);
let wait = 500;

function show(news) {
  element("worker").textContent = news.worker;
  element("seconds").textContent = news.seconds;
  element("people").replaceChildren(...news.people.map((person) => {
    const item = document.createElement("li");
    const name = document.createElement("span");
    const count = document.createElement("span");
    name.textContent = person.name;
    count.textContent = person.waves === 1 ? "1 wave" : person.waves + " waves";
    count.className = "count";
    item.append(name, count);
    return item;
  }));
}

function connect() {
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/live");
  socket.onopen = () => {
    wait = 500;
    element("state").textContent = "live";
    element("state").dataset.state = "open";
    element("wave").disabled = false;
  };
  socket.onmessage = (event) => show(JSON.parse(event.data));
  socket.onclose = (event) => {
    element("wave").disabled = true;
    element("state").dataset.state = "closed";
    if (event.code === LOGGED_OUT) {
      location.assign("/");
      return;
    }
    element("state").textContent = "connecting again";
    setTimeout(connect, wait);
    wait = Math.min(2 * wait, MOST_WAIT);
  };
  element("wave").onclick = () => socket.send("wave");
}

connect();
