// Leads what would be dialled at fal's names to ports of loopback (BENCH_PORTS: {"http:fal.run": 1234}), and changes
// nothing else: requests, TLS and its verification are Node's own. A name that is not listed is an error.
const net = require("node:net");
const tls = require("node:tls");

const ports = JSON.parse(process.env.BENCH_PORTS);

function redirected(module, scheme) {
  const connect = module.connect;
  module.connect = function (options, ...rest) {
    const name = options.servername || options.hostname || options.host;
    const port = ports[`${scheme}:${name}`];
    if (port === undefined) throw new Error(`${scheme}:${name} is not among BENCH_PORTS`);
    return connect.call(this, { ...options, host: "127.0.0.1", port }, ...rest);
  };
}

redirected(net, "http");
// tls.connect opens its own socket, by the function of net that is not replaced for it.
redirected(tls, "https");
