// Services, hosts, flows and certificates as tables.

import { byId, element, icon, show, table, tag, well } from './dom.js';
import { KINDS, ago, bytes, client, count, flowKey, flowTexts, health, hostTexts, matches, serviceTexts, span } from './model.js';

// Rows that are made at once; the rest on request.
const MAX_ROWS = 200;
const unlimited = new Set();
const folded = new Set();

const empty = (text) => element('p', { class: 'empty' }, text);

// Rows that fit, and a button for the others.
function limited(name, rows, columns, again) {
  if (rows.length <= MAX_ROWS || unlimited.has(name)) return rows;
  const more = () => { unlimited.add(name); again(); };
  const button = element('button', { class: 'plain', type: 'button', 'data-key': `more-${name}`, onclick: more }, `Show all ${rows.length.toLocaleString('en')}`);
  return [...rows.slice(0, MAX_ROWS), element('tr', {}, element('td', { colspan: columns, class: 'more' }, button))];
}

export function services(state, options, again) {
  const shown = state.services.filter((service) => (service.named || !options.namedOnly) && matches(options.search, serviceTexts(service)));
  const traffic = new Map();
  for (const flow of state.flows) {
    const all = traffic.get(flow.to) ?? {};
    all[flow.kind] = (all[flow.kind] ?? 0) + 1;
    traffic.set(flow.to, all);
  }
  shown.sort((one, other) => health(one).rank - health(other).rank || other.named - one.named || one.id.localeCompare(other.id));
  const columns = [['Service'], ['Health'], ['Mode'], ['Instances'], ['Clients']];
  const row = (service) => serviceRow(service, traffic.get(service.id) ?? {});
  const bodies = [...grouped(shown, options.grouping)].map(([group, all]) => {
    const isFolded = group && folded.has(group);
    const rows = isFolded ? [] : limited(`services-${group}`, all.map(row), columns.length, again);
    return element('tbody', {}, group ? heading(group, all, isFolded, columns.length, again) : null, rows);
  });
  show(byId('services'), shown.length ? table(columns, bodies) : empty('No service has this name.'));
}

function grouped(all, grouping) {
  const groups = new Map();
  const keys = {
    health: (service) => [health(service).rank === 2 ? 'healthy' : health(service).rank === 1 ? 'partly healthy' : 'no healthy instance'],
    host: (service) => service.instances.map((instance) => instance.host),
    mode: (service) => [service.mode],
  };
  for (const service of all) {
    for (const key of grouping ? keys[grouping](service) : ['']) groups.set(key, [...(groups.get(key) ?? []), service]);
  }
  return grouping === 'host' ? new Map([...groups].sort(([one], [other]) => one.localeCompare(other))) : groups;
}

function heading(group, all, isFolded, columns, again) {
  const bad = all.filter((service) => health(service).rank < 2).length;
  const fold = () => { if (!folded.delete(group)) folded.add(group); again(); };
  return element('tr', { class: 'group' }, element('th', { colspan: columns, scope: 'rowgroup' },
    element('button', { class: 'plain', type: 'button', 'aria-expanded': String(!isFolded), 'data-key': `fold-${group}`, onclick: fold }, `${isFolded ? '▸' : '▾'} ${group}`),
    element('span', { class: 'soft' }, `  ${count(all.length, 'service')}${bad ? `, ${bad} not healthy` : ''}`)));
}

function serviceRow(service, traffic) {
  const how = health(service);
  const about = service.named ? `port ${service.port}${service.balance && service.balance !== 'pinned' ? `, ${service.balance}` : ''}${service.check ? `, check ${service.check}` : ''}` : 'no name';
  const kinds = Object.keys(KINDS).filter((kind) => traffic[kind]);
  return element('tr', { 'data-service': service.id },
    element('th', { scope: 'row' }, service.id, element('div', { class: 'soft' }, about)),
    element('td', {}, element('span', { class: `tag kind-${how.tone}` }, icon(how.icon), how.words)),
    element('td', {}, service.mode, service.unconfirmed_until ? element('div', { class: 'soft' }, 'not confirmed yet') : null),
    element('td', {}, element('ul', { class: 'instances' }, service.instances.map(instance))),
    element('td', {}, kinds.length ? kinds.map((kind) => element('div', {}, tag(kind, `${traffic[kind]} ${KINDS[kind]}`))) : element('span', { class: 'soft' }, 'none seen')));
}

function instance({ host, state, reason, workload }) {
  const good = state === 'healthy';
  return element('li', { class: good ? undefined : 'bad', title: workload ? `served by ${workload}` : undefined },
    icon(good ? 'good' : 'bad'), good ? host : `${host}: ${state}${reason && reason !== state ? ` (${reason})` : ''}`);
}

export function hosts(state, { search }, again) {
  const shown = state.hosts.filter((host) => matches(search, hostTexts(host)));
  shown.sort((one, other) => one.connected - other.connected || one.node.localeCompare(other.node));
  const columns = [['Host'], ['State'], ['Addresses'], ['Agent'], ['Services', 'number']];
  const served = new Map();
  for (const service of state.services) for (const { host } of service.instances) served.set(host, (served.get(host) ?? 0) + 1);
  const rows = shown.map((host) => element('tr', { 'data-host': host.node },
    element('th', { scope: 'row' }, host.node),
    element('td', {}, hostState(host, state.now)),
    element('td', {}, host.addresses.join(', ')),
    element('td', {}, host.version),
    element('td', { class: 'number' }, served.get(host.node) ?? 0)));
  const servers = state.servers.map((server) => element('tr', {},
    element('th', { scope: 'row' }, server.node),
    element('td', {}, server.connected ? well(server.leader ? 'leads' : 'runs') : tag('denied', server.last_seen ? `gone, seen ${ago(state.now - server.last_seen)}` : 'gone')),
    element('td', {}, server.addresses.join(', ')), element('td', {}, server.version), element('td', {})));
  show(byId('hosts'),
    shown.length ? table(columns, element('tbody', {}, limited('hosts', rows, columns.length, again))) : empty('No host has this name.'),
    element('h3', {}, 'Servers'), table([['Server'], ['State'], ['Addresses'], ['Version'], ['']], element('tbody', {}, servers)));
}

function hostState(host, now) {
  if (!host.connected) return tag('denied', host.last_seen ? `not connected, seen ${ago(now - host.last_seen)}` : 'never connected');
  return host.drained ? tag('plaintext', 'drained') : well('connected');
}

let before = { now: 0, connections: new Map() };
let rates = new Map();

// Connections a second, between two states.
export function measure(state) {
  const elapsed = state.now - before.now;
  if (elapsed < 2) return;
  const connections = new Map(state.flows.map((flow) => [flowKey(flow), flow.connections]));
  rates = new Map([...connections].map(([key, value]) => [key, before.now && value !== null ? Math.max(0, value - (before.connections.get(key) ?? 0)) / elapsed : 0]));
  before = { now: state.now, connections };
}

export function flows(state, { search, kinds }, again) {
  const shown = state.flows.filter((flow) => kinds.has(flow.kind) && matches(search, flowTexts(flow)));
  const columns = [['From'], ['To'], ['What'], ['Now', 'number'], ['All', 'number'], ['A second', 'number'], ['Failed', 'number'], ['Sent', 'number'], ['Received', 'number'], ['Last seen']];
  const number = (value, text = value) => element('td', { class: 'number' }, value ? text.toLocaleString('en') : element('span', { class: 'soft' }, '–'));
  const rows = shown.map((flow) => {
    const rate = rates.get(flowKey(flow)) ?? 0;
    return element('tr', { 'data-kind': flow.kind },
      element('th', { scope: 'row' }, client(flow), element('div', { class: 'soft' }, flow.host ?? 'outside the mesh')),
      element('td', {}, flow.to, flow.to_host && !flow.to.startsWith(flow.to_host) ? element('div', { class: 'soft' }, flow.to_host) : null),
      element('td', {}, tag(flow.kind, KINDS[flow.kind]), flow.rule ? element('div', { class: 'soft' }, `rule ${flow.rule}`) : null),
      number(flow.open), flow.connections === null ? element('td', { class: 'number soft', title: 'only counted for all clients together' }, '?') : number(flow.connections),
      number(rate, rate < 10 ? rate.toFixed(1) : Math.round(rate)), number(flow.failed), number(flow.sent, bytes(flow.sent)), number(flow.received, bytes(flow.received)),
      element('td', {}, ago(state.now - flow.last_seen)));
  });
  byId('flows-note').textContent = 'All connections of one client to one service, counted since the agent of its host was started; in clear: in the last hour. Bytes are those of connections that have ended.';
  show(byId('flows'), shown.length ? table(columns, element('tbody', {}, limited('flows', rows, columns.length, again))) : empty('No such connection was seen.'));
}

export function certificates(state, { search }, again) {
  const { phase, roots, server_ends: serverEnds } = state.certificates;
  const left = (end) => (end > state.now ? `ends in ${span(end - state.now)}` : 'has ended');
  const steps = {
    steady: 'One root signs, and everybody trusts it.',
    prepared: 'A new root is trusted beside the old one, which signs. Next: murmesh ca rotate activate.',
    activated: 'The new root signs; the old one is still trusted. Next: murmesh ca rotate retire.',
  };
  const rootRows = roots.map((root) => element('tr', {},
    element('th', { scope: 'row' }, element('code', {}, root.fingerprint.match(/.{8}/g).join(' '))),
    element('td', {}, root.signs ? well('signs') : 'trusted'),
    element('td', {}, root.ends ? left(root.ends) : '')));
  const holders = [{ node: state.server, about: 'this server', end: serverEnds },
    ...state.hosts.filter((host) => matches(search, hostTexts(host))).map((host) => ({ node: host.node, about: 'host', end: host.certificate_ends, connected: host.connected }))];
  const rows = holders.map(({ node, about, end, connected }) => element('tr', {},
    element('th', { scope: 'row' }, node), element('td', {}, about),
    element('td', {}, end ? element('span', { class: `tag kind-${end - state.now > 300 ? 'encrypted' : 'denied'}` }, icon(end > state.now ? 'good' : 'bad'), left(end))
      : element('span', { class: 'soft' }, connected ? 'not known here' : 'not connected'))));
  show(byId('certificates'),
    element('p', { class: 'note' }, `${steps[phase]} Certificates of hosts and workloads are renewed by themselves, at half of their time.`),
    table([['Root (SHA-256)'], ['State'], ['End']], element('tbody', {}, rootRows)),
    element('h3', {}, 'Certificates in use'),
    table([['Holder'], ['Of'], ['End']], element('tbody', {}, limited('certificates', rows, 3, again))));
}
