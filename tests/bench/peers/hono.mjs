// The official proxy on Hono, set up as its README says.
import { createRouteHandler } from "@fal-ai/server-proxy/hono";
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const app = new Hono();
app.all("/api/fal/proxy", createRouteHandler());
serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }, (address) => console.log(address.port));
