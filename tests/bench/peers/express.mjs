// The official proxy on Express, set up as its README says.
import { createHandler } from "@fal-ai/server-proxy/express";
import express from "express";

const app = express();
app.all("/api/fal/proxy", express.json(), createHandler());
const server = app.listen(0, "127.0.0.1", () => console.log(server.address().port));
