export const standing = (init) => fetch("/api/fal/proxy/me", init).then((answer) => answer.json());

/** A fetch for `createFalClient({ proxyUrl, fetch, retry: { maxRetries: 0 } })` that waits as long as it is told to. */
export const patient = (wait) => async (url, init) => {
  for (;;) {
    const answer = await fetch(url, init);
    if (answer.status !== 429) return answer;
    await wait(Number(answer.headers.get("retry-after")), await answer.json());
  }
};
