// socket.io with the Redis streams adapter and connection state recovery, as its documentation has it. usage: PORT URL
const { createClient } = require("redis");
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-streams-adapter");

const [port, url] = process.argv.slice(2);

async function main() {
  const client = createClient({ url });
  client.on("error", () => {}); // without a listener it would end the process; the client connects again by itself
  await client.connect();
  const io = new Server({ adapter: createAdapter(client), connectionStateRecovery: {} });
  io.on("connection", (socket) => {
    socket.on("subscribe", (channel, acknowledge) => {
      socket.join(channel);
      acknowledge(true);
    });
    socket.on("publish", (channel, text, acknowledge) => {
      io.to(channel).emit("text", text);
      acknowledge(true);
    });
  });
  const http = require("http").createServer();
  io.attach(http);
  http.listen(Number(port), "127.0.0.1", 1024);
}

main();
