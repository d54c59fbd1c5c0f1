// There is no call to show: no key was ever in this page. This is how it asks `dev` what it saw.
export const trace = () => fetch("/demo/trace.json").then((answer) => answer.json());
