// Every way in which a page can make a browser ask something of another origin. Each attack is given an address of its own,
// and returns what the page got to see, or null. They are functions of the page: nothing outside of them is known there,
// but for `hostileTools`.

export function hostileTools() {
  const PATIENCE = 10_000;
  const tools = {};
  tools.within = (promise) =>
    Promise.race([promise, new Promise((resolve) => setTimeout(resolve, PATIENCE, null))]).catch(() => null);
  /** Add an element and return how it fared. */
  tools.embed = (tag, attributes) => {
    const element = Object.assign(document.createElement(tag), attributes);
    const fared = new Promise((resolve) => {
      for (const event of ["load", "loadeddata", "canplay"]) element.addEventListener(event, () => resolve(event));
      element.addEventListener("error", () => resolve(null));
    });
    document.body.append(element);
    return tools.within(fared);
  };
  /** Return what stands in a frame, if it can be seen. */
  tools.lookInto = (frame) => {
    try {
      const text = frame.contentDocument?.documentElement.outerHTML ?? null;
      return frame.contentWindow.location.href === "about:blank" ? null : text;
    } catch {
      return null;
    }
  };
  tools.frame = async (attributes) => {
    const frame = Object.assign(document.createElement("iframe"), attributes);
    const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
    document.body.append(frame);
    await tools.within(loaded);
    return tools.lookInto(frame);
  };
  tools.form = (attributes) => {
    const form = Object.assign(document.createElement("form"), { method: "post", ...attributes });
    // As text/plain this becomes {"prompt": "=a pier"}.
    form.append(Object.assign(document.createElement("input"), { name: '{"prompt": "', value: 'a pier"}' }));
    document.body.append(form);
    return form;
  };
  tools.submit = async (attributes) => {
    const target = `sink-${Math.random()}`;
    const sink = Object.assign(document.createElement("iframe"), { name: target });
    document.body.append(sink);
    const form = tools.form({ ...attributes, target });
    const loaded = new Promise((resolve) => sink.addEventListener("load", resolve));
    form.submit();
    await tools.within(loaded);
    return tools.lookInto(sink);
  };
  tools.read = async (url, init) => {
    const response = await tools.within(fetch(url, init));
    return response === null || response.type === "opaque" ? null : response.text();
  };
  tools.socket = (url) =>
    tools.within(
      new Promise((resolve) => {
        const socket = new WebSocket(url);
        socket.onopen = () => resolve("open");
        socket.onclose = socket.onerror = () => resolve(null);
      }),
    );
  tools.events = (url, init) =>
    tools.within(
      new Promise((resolve) => {
        const source = new EventSource(url, init);
        const end = (seen) => (source.close(), resolve(seen));
        source.onopen = () => end("open");
        source.onmessage = ({ data }) => end(data);
        source.onerror = () => end(null);
      }),
    );
  globalThis.hostile = tools;
}

/** What needs no permission of the other origin to be sent. */
export const sent = {
  form_urlencoded: ({ url }) => hostile.submit({ action: url }),
  form_multipart: ({ url }) => hostile.submit({ action: url, enctype: "multipart/form-data" }),
  form_text: ({ url }) => hostile.submit({ action: url, enctype: "text/plain" }),
  form_get: ({ url }) => hostile.submit({ action: url, method: "get" }),
  // In a sandbox a page has no origin: `Origin: null`.
  form_sandboxed: ({ url }) =>
    hostile.frame({
      sandbox: "allow-scripts allow-forms",
      srcdoc: `<form method=post enctype=text/plain action="${url}"><input name=a value=b></form><script>document.forms[0].submit()</script>`,
    }),
  fetch_sandboxed: ({ url }) =>
    hostile.frame({
      sandbox: "allow-scripts",
      srcdoc: `<script>fetch("${url}", { method: "POST", mode: "no-cors", credentials: "include", body: "{}" })</script>`,
    }),
  fetch_simple: ({ url }) =>
    hostile.read(url, { method: "POST", mode: "no-cors", credentials: "include", body: '{"prompt": "a pier"}' }),
  fetch_credentials: ({ url }) => hostile.read(url, { method: "POST", credentials: "include", body: '{"prompt": "a pier"}' }),
  fetch_without_credentials: ({ url }) => hostile.read(url, { method: "POST", credentials: "omit", body: "{}" }),
  fetch_keepalive: ({ url }) =>
    hostile.read(url, { method: "POST", mode: "no-cors", credentials: "include", keepalive: true, body: "{}" }),
  fetch_unsaid: ({ url }) =>
    hostile.read(url, { method: "POST", mode: "no-cors", credentials: "include", referrerPolicy: "no-referrer", body: "{}" }),
  fetch_get: ({ url }) => hostile.read(url, { credentials: "include" }),
  fetch_get_simple: ({ url }) => hostile.read(url, { mode: "no-cors", credentials: "include" }),
  fetch_redirected: ({ url, site }) =>
    hostile.read(`${site}/redirect?${encodeURIComponent(url)}`, { method: "POST", credentials: "include", body: "{}" }),
  xhr: ({ url }) =>
    hostile.within(
      new Promise((resolve) => {
        const request = new XMLHttpRequest();
        request.open("POST", url);
        request.withCredentials = true;
        request.onload = () => resolve(request.responseText);
        request.onerror = () => resolve(null);
        request.send("{}");
      }),
    ),
  beacon: ({ url }) => (navigator.sendBeacon(url, '{"prompt": "a pier"}'), null),
  beacon_form: ({ url }) => (navigator.sendBeacon(url, new URLSearchParams({ prompt: "a pier" })), null),
  ping: ({ url }) => {
    const link = Object.assign(document.createElement("a"), { href: "#here", ping: url });
    document.body.append(link);
    link.click();
    return null;
  },
  report: ({ url, site }) => hostile.frame({ src: `${site}/reports?${encodeURIComponent(url)}` }).then(() => null),
  image: ({ url }) => hostile.embed("img", { src: url }),
  image_redirected: ({ url, site }) => hostile.embed("img", { src: `${site}/redirect?${encodeURIComponent(url)}` }),
  frame: ({ url }) => hostile.frame({ src: url }),
  // These two load, whatever is answered.
  object: ({ url }) =>
    hostile.embed("object", { data: url }).then(() => hostile.lookInto(document.querySelector("object"))),
  embed: ({ url }) => hostile.embed("embed", { src: url }).then(() => null),
  video: ({ url }) => hostile.embed("video", { src: url, muted: true, preload: "auto" }),
  script: ({ url }) => hostile.embed("script", { src: url }),
  module: ({ url }) => hostile.within(import(url).then(() => "imported")),
  style: ({ url }) => hostile.embed("link", { rel: "stylesheet", href: url }),
  prefetch: ({ url }) => hostile.embed("link", { rel: "prefetch", href: url }),
  preload: ({ url }) => hostile.embed("link", { rel: "preload", as: "image", href: url }),
  background: ({ url }) => ((document.body.style.background = `url(${url})`), null),
  events: ({ url }) => hostile.events(url),
  events_credentials: ({ url }) => hostile.events(url, { withCredentials: true }),
  socket: ({ url }) => hostile.socket(`${url.replace("http", "ws")}/realtime`),
  socket_of_an_app: ({ url }) => hostile.socket(url.replace("http", "ws")),
};

/** What opens a window: one at a time, because a browser wants to see a click for each. */
export const opened = {
  form_window: ({ url }) => (hostile.form({ action: url, enctype: "text/plain", target: "_blank" }).submit(), null),
  window: ({ url }) => (window.open(url), null),
  window_unsaid: ({ url }) => (window.open(url, "_blank", "noopener,noreferrer"), null),
};

/** What a browser asks about first: the address is asked OPTIONS, and then nothing more. */
export const asked_first = {
  fetch_json: ({ url }) =>
    hostile.read(url, {
      method: "POST",
      credentials: "include",
      headers: { "content-type": "application/json" },
      body: '{"prompt": "a pier"}',
    }),
  fetch_target: ({ url, mount }) =>
    hostile.read(mount, {
      method: "POST",
      credentials: "include",
      headers: { "x-fal-target-url": url.replace(`${mount}/`, "https://") },
      body: '{"prompt": "a pier"}',
    }),
  fetch_put: ({ url }) => hostile.read(url, { method: "PUT", credentials: "include", body: "{}" }),
};
