// Somebody's bytes, opened in every way in which a browser might take them for code.

/** Open each of `urls` from the page `at`, and as if typed into the address bar; `linked` ones behind a link of that page too.
 * What runs says so on the console. */
export async function open({ page, params: { at, urls, linked } }) {
  await page.goto(at);
  await page.evaluate(async (urls) => {
    const PATIENCE = 1_500;
    const over = (element) =>
      new Promise((resolve) => {
        for (const event of ["load", "error"]) element.addEventListener(event, resolve);
        setTimeout(resolve, PATIENCE);
      });
    const add = (tag, attributes) => {
      const element = Object.assign(document.createElement(tag), attributes);
      document.body.append(element);
      return over(element);
    };
    const ways = [
      (url) => add("iframe", { src: url }),
      (url) => add("object", { data: url }),
      (url) => add("script", { src: url }),
      (url) => add("link", { rel: "stylesheet", href: url }),
      (url) => import(url).catch(() => null),
      (url) => {
        const worker = new Worker(url);
        return over(worker);
      },
      (url) => navigator.serviceWorker.register(url).catch(() => null),
      (url) => navigator.serviceWorker.register(url, { type: "module" }).catch(() => null),
    ];
    await Promise.all(urls.flatMap((url) => ways.map((way) => way(url))));
  }, urls);
  const registered = await page.evaluate(async () => (await navigator.serviceWorker.getRegistrations()).length);
  const styled = await page.evaluate(() => getComputedStyle(document.documentElement).getPropertyValue("--ran"));
  for (const url of linked) {
    await page.goto(at);
    const opened = page.waitForURL(url).catch(() => null); // or a download
    await page.evaluate((url) => (location.href = url), url);
    await opened;
  }
  // As an address that somebody typed; what is no document becomes a download, which shows nothing.
  for (const url of urls) await page.goto(url).catch(() => null);
  return { registered, styled };
}

/** Upload `body` from the proxy's own origin as `type`, and return what becomes of it. */
export async function upload({ page, params: { mount, type, name, body } }) {
  await page.goto(`${mount}/client.d.ts`);
  return page.evaluate(
    async ({ mount, type, name, body }) => {
      const begun = await fetch(mount, {
        method: "POST",
        headers: {
          "content-type": "application/json",
          "x-fal-target-url": "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3",
        },
        body: JSON.stringify({ content_type: type, file_name: name }),
      });
      const answer = await begun.json();
      if (!begun.ok) return { begun: begun.status };
      const sent = await fetch(answer.upload_url, { method: "PUT", headers: { "content-type": type }, body });
      return { begun: begun.status, sent: sent.status, file: answer.file_url };
    },
    { mount, type, name, body },
  );
}
