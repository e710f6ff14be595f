#!/usr/bin/env node
// Stands for `firecracker`: its API socket with the states and refusals of the official file, its
// vsock socket, its snapshots, and a guest behind it that serves HTTP and counts in its memory.
// No machine: what only KVM can do is not done.
"use strict";
const fs = require("fs"), http = require("http"), net = require("net");

const options = {};
for (let at = 2; at < process.argv.length; at += 2) options[process.argv[at]] = process.argv[at + 1];
const api = options["--api-sock"];
if (!api || fs.existsSync(api)) {
  console.error(`cannot listen on ${api}`);
  process.exit(1);
}

let state = "Not started", config = {}, count = 0, told = null, guest = null, links = 0;
const said = (path, body) => fs.appendFileSync("requests", JSON.stringify([path, body]) + "\n");

class Refusal extends Error {}
const refuse = (why) => { throw new Refusal(why); };

// What the guest is: it listens on the port that its kernel's command line names, 8080 if none; `word`
// is said instead of OK, `note` is a file that it writes when it is asked to end.
function boot() {
  const append = config["/boot-source"].boot_args || "";
  guest = {
    port: Number((append.match(/port=(\d+)/) || [0, 8080])[1]),
    stubborn: /stubborn/.test(append),
    word: (append.match(/word=(\S+)/) || [0, "OK_1073741824"])[1].replace("_", " "),
    note: (append.match(/note=(\S+)/) || [])[1],
    env: append,
  };
}

const served = http.createServer((request, response) => {
  const answers = {
    "/count": () => String(++count),
    "/env": () => Object.keys(process.env).sort().join(" "),
    "/links": () => String(links),
    "/told": () => JSON.stringify(told),
    "/disk": () => {
      // In the first bytes, where ext4 has nothing.
      const drive = config["/drives/layer"] || config["/drives/disk"];
      const file = fs.openSync(drive.path_on_host, drive.is_read_only ? "r" : "r+");
      const head = Buffer.alloc(16);
      fs.readSync(file, head, 0, 16, 0);
      const n = Number(head.toString("latin1").replace(/\D/g, "") || 0) + 1;
      if (drive.is_read_only) return "read-only";
      fs.writeSync(file, `${n}\n`, 0);
      fs.closeSync(file);
      return String(n);
    },
    "/root": () => {
      const { path_on_host, is_read_only } = config["/drives/disk"];
      return is_read_only ? fs.readFileSync(path_on_host, "latin1") : "writable";
    },
    "/off": () => process.exit(0),
  };
  response.end((answers[request.url] || (() => "hello"))());
});

function openVsock() {
  const { uds_path } = config["/vsock"] || {};
  if (!uds_path) return;
  const server = net.createServer((socket) => {
    let head = "";
    const onData = (bytes) => {
      head += bytes.toString("latin1");
      const end = head.indexOf("\n");
      if (end < 0) return;
      socket.off("data", onData);
      const [, port] = head.slice(0, end).match(/^CONNECT (\d+)$/) || [];
      // While it is paused nobody answers.
      if (state === "Paused") return;
      if (Number(port) !== guest.port) return socket.destroy();
      if (!guest.word.startsWith("OK 10")) said("said", guest.word);
      socket.write(`${guest.word}\n`);
      const rest = Buffer.from(head.slice(end + 1), "latin1");
      if (rest.length) socket.unshift(rest);
      served.emit("connection", socket);
    };
    socket.on("data", onData);
    socket.on("error", () => {});
  });
  server.on("error", (error) => refuse(String(error)));
  server.listen(uds_path);
}

const before = ["/machine-config", "/boot-source", "/vsock", "/entropy", "/mmds/config"];
const isSetup = (path) => before.includes(path) || /^\/(drives|network-interfaces)\//.test(path);

function setUp(path, body) {
  if (state !== "Not started") refuse("The requested operation is not supported after starting the microVM.");
  const file = body.kernel_image_path || body.path_on_host;
  if (file && !fs.existsSync(file)) refuse(`cannot open ${file}: No such file or directory`);
  const isRoot = ([name, { is_root_device }]) => is_root_device && name !== path;
  if (body.is_root_device && Object.entries(config).some(isRoot)) refuse("A root block device already exists!");
  if (path === "/boot-source" && !body.kernel_image_path) refuse("no kernel");
  config[path] = body;
}

const actions = {
  InstanceStart() {
    if (state !== "Not started") refuse("The microVM is running.");
    if (!config["/boot-source"]) refuse("Cannot start microvm without kernel configuration.");
    boot();
    openVsock();
    state = "Running";
  },
  SendCtrlAltDel() {
    if (state === "Not started") refuse("not started");
    // While it is paused nobody sees a key.
    if (guest.stubborn || state !== "Running") return;
    if (guest.note) fs.appendFileSync(guest.note, `keys${fs.readdirSync(".").filter((name) => name.endsWith(".part"))}\n`);
    setImmediate(() => process.exit(0));
  },
};

function create({ snapshot_type, snapshot_path, mem_file_path }) {
  if (state !== "Paused") refuse("save/restore unavailable while running");
  if (snapshot_type !== "Full") refuse("not that kind");
  fs.writeFileSync(mem_file_path, JSON.stringify({ count }));
  const size = config["/machine-config"].mem_size_mib * 1024 * 1024;
  fs.truncateSync(mem_file_path, /short/.test(guest.env) ? size - 1 : size);
  if (/full/.test(guest.env)) refuse("No space left on device");
  fs.writeFileSync(snapshot_path, JSON.stringify({ config, crc: "ok" }));
}

function load({ snapshot_path, mem_backend, resume_vm, network_overrides }) {
  if (state !== "Not started" || Object.keys(config).length) refuse("Loading a microVM snapshot not allowed after configuring boot-specific resources.");
  try {
    ({ config } = JSON.parse(fs.readFileSync(snapshot_path, "utf8")));
    const memory = Buffer.alloc(256);
    links = fs.statSync(mem_backend.backend_path).nlink;
    fs.readSync(fs.openSync(mem_backend.backend_path, "r"), memory);
    ({ count } = JSON.parse(memory.toString().replace(/\0.*$/s, "")));
    for (const { iface_id, host_dev_name } of network_overrides || []) {
      config[`/network-interfaces/${iface_id}`].host_dev_name = host_dev_name;
    }
    for (const name of ["/drives/disk", "/drives/layer"]) {
      if (config[name] && !fs.existsSync(config[name].path_on_host)) throw new Error("its disk is gone");
    }
    boot();
    openVsock();
    state = resume_vm ? "Running" : "Paused";
  } catch (error) {
    // A failed load ends the process, once its answer is out.
    setTimeout(() => process.exit(148), 5);
    refuse(`Load snapshot error: ${error.message}`);
  }
}

const server = http.createServer((request, response) => {
  let text = "";
  request.on("data", (bytes) => (text += bytes));
  request.on("end", () => {
    const { method, url } = request;
    try {
      const body = text && method !== "GET" ? JSON.parse(text) : undefined;
      said(`${method} ${url}`, body);
      if (method === "GET" && url === "/") {
        response.setHeader("Content-Type", "application/json");
        return response.end(JSON.stringify({ app_name: "Firecracker", id: options["--id"], state, vmm_version: "1.17.0" }));
      }
      if (method === "PUT" && isSetup(url)) setUp(url, body);
      else if (method === "PUT" && url === "/mmds") {
        if (!config["/mmds/config"]) refuse("The MMDS is not configured.");
        told = body;
      } else if (method === "PUT" && url === "/actions") actions[body.action_type]();
      else if (method === "PUT" && url === "/snapshot/create") create(body);
      else if (method === "PUT" && url === "/snapshot/load") load(body);
      else if (method === "PATCH" && url === "/vm") {
        if (state === "Not started") refuse("The requested operation is not supported before starting the microVM.");
        state = body.state === "Paused" ? "Paused" : "Running";
      } else refuse(`Invalid request method and/or path: ${method} ${url}.`);
      response.statusCode = 204;
      response.end();
    } catch (error) {
      response.statusCode = 400;
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({ fault_message: error.message }));
    }
  });
});
server.listen(api);
