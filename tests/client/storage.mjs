// fal.storage: uploads, asked for and automatic.
import { File } from "node:buffer";
import { createHash, randomBytes } from "node:crypto";
import { fal } from "./client.mjs";

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

async function fetched(url) {
  const response = await fetch(url);
  const bytes = Buffer.from(await response.arrayBuffer());
  return { size: bytes.length, hash: sha256(bytes), type: response.headers.get("content-type") };
}

export async function upload({ size, type, name, options }) {
  const bytes = randomBytes(size);
  const file = name ? new File([bytes], name, { type }) : new Blob([bytes], { type });
  const url = await fal.storage.upload(file, options);
  return { url, sent: { size, hash: sha256(bytes) }, got: await fetched(url) };
}

export async function automatic({ endpoint }) {
  const file = new File(["a file"], "žluť kůň.txt", { type: "text/plain" });
  const blob = new Blob(["a blob"], { type: "text/x-blob" });
  const input = { prompt: "p", file, nested: { list: [blob, "kept", 7, null] }, inline: "data:text/plain,kept" };
  const { data } = await fal.subscribe(endpoint, { input, pollInterval: 20 });
  const read = async (url) => (await fetch(url)).text();
  return { input: data.input, file: await read(data.input.file), blob: await read(data.input.nested.list[0]) };
}

export async function pictureFromPicture({ input }) {
  const first = await fal.run("fal-ai/flux/schnell", { input });
  const bytes = await (await fetch(first.data.images[0].url)).arrayBuffer();
  const image = new File([bytes], "first.jpg", { type: "image/jpeg" });
  const { data } = await fal.run("fal-ai/flux/dev/image-to-image", { input: { ...input, image_url: image } });
  return { image: data.images[0], got: await fetched(data.images[0].url) };
}
