// Module hooks: Node imports http: URLs as browsers do, with `import.meta.url` being where the module came from.
export async function load(url, context, nextLoad) {
  if (!url.startsWith("http:")) return nextLoad(url, context);
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP ${response.status} ${await response.text()}`);
  const type = response.headers.get("content-type");
  if (type !== "text/javascript; charset=utf-8") throw new Error(`${url}: no module, but ${type}`);
  return { format: "module", shortCircuit: true, source: await response.text() };
}
