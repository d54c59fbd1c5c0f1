export const standing = async (init) => (await fetch("/api/fal/proxy/me", init)).json();

// createFalClient({ proxyUrl: "/api/fal/proxy", fetch: patient(wait) })
export const patient = (wait) => async (url, init) => {
  for (;;) {
    const answer = await fetch(url, init);
    if (answer.status !== 429) return answer;
    await wait(Number(answer.headers.get("retry-after")), await answer.json());
  }
};
