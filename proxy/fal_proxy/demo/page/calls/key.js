// No call of fal's: no key was ever in this page. It asks `dev` what it saw.
export const trace = async () => (await fetch("/demo/trace.json")).json();
