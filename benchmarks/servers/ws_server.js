// ws on node. usage: PORT echo|relay [--deflate]
const { WebSocketServer } = require("ws");
const relay = process.argv[3] === "relay";
const subscribers = new Map();
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  perMessageDeflate: process.argv.includes("--deflate"),
  maxPayload: 64 << 20,
  backlog: 1024,
});
server.on("connection", (ws) => {
  ws.on("message", (message, isBinary) => {
    if (!relay) {
      ws.send(message, { binary: isBinary });
      return;
    }
    const text = message.toString("latin1", 0, 80);
    const [command, channel] = text.split(":", 2);
    if (!subscribers.has(channel)) subscribers.set(channel, new Set());
    ws.send(Buffer.from("OK"));
    if (command === "subscribe") {
      subscribers.get(channel).add(ws);
    } else {
      const body = message.subarray(command.length + channel.length + 2);
      for (const subscriber of subscribers.get(channel)) subscriber.send(body);
    }
  });
  ws.on("close", () => {
    for (const several of subscribers.values()) several.delete(ws);
  });
});
