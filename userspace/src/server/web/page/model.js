// What is derived from the state that the server tells.

export const KINDS = {
  encrypted: 'encrypted',
  plaintext: 'in clear',
  denied: 'denied',
  unavailable: 'no instance',
};

export const UNKNOWN = 'not known';

// How a service is: [kind of icon, kind of tone, words].
export function health(service) {
  const all = service.instances.length;
  const healthy = service.instances.filter((instance) => instance.state === 'healthy').length;
  if (healthy === all && all > 0) return { icon: 'good', tone: 'encrypted', rank: 2, words: all === 1 ? 'healthy' : `${all} of ${all} healthy` };
  if (healthy > 0) return { icon: 'bad', tone: 'plaintext', rank: 1, words: `${healthy} of ${all} healthy` };
  return { icon: 'denied', tone: 'denied', rank: 0, words: all === 1 ? service.instances[0].state : `none of ${all} healthy` };
}

export function client(flow) {
  if (flow.workload) return flow.workload;
  return flow.address || UNKNOWN;
}

// Of a flow, a service or a host: whether all words of the search are in it.
export function matches(search, ...texts) {
  const all = texts.flat(Infinity).filter(Boolean).join(' ').toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => all.includes(word));
}

export const flowTexts = (flow) => [flow.host, flow.workload, flow.address, flow.to, flow.to_host, KINDS[flow.kind]];
export const serviceTexts = (service) => [service.id, service.mode, String(service.port), health(service).words,
  service.instances.map((instance) => [instance.host, instance.workload, instance.state])];
export const hostTexts = (host) => [host.node, host.addresses, host.version, host.connected ? 'connected' : 'not connected'];
export const flowKey = (flow) => [flow.kind, flow.host, flow.workload, flow.address, flow.to, flow.to_host].join('|');

export function ago(seconds) {
  if (seconds < 2) return 'now';
  return `${span(seconds)} ago`;
}

export function span(seconds) {
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const [size, name] = units.find(([size]) => seconds >= size) || [1, 's'];
  const first = Math.floor(seconds / size);
  const rest = size === 86400 && first < 10 ? Math.floor((seconds % size) / 3600) : 0;
  return rest ? `${first} ${name} ${rest} h` : `${first} ${name}`;
}

export function bytes(count) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export const count = (number, word) => `${number.toLocaleString('en')} ${word}${number === 1 ? '' : 's'}`;
