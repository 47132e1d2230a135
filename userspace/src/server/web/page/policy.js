// Rules, and what they would say of a connection.

import { byId, element, show, table, tag, well } from './dom.js';
import { matches } from './model.js';

let asked = null;
let rulesBefore = '';

export function policy(state, { search }) {
  const { mesh, egress, mode, rules, all_rules: allRules } = state.policy;
  const columns = [['Rule', 'number'], ['Action'], ['From'], ['To'], ['']];
  const shown = rules.filter((rule) => matches(search, [rule.action, rule.source, rule.destination, `rule ${rule.id}`]));
  const rows = shown.map((rule) => element('tr', {},
    element('td', { class: 'number' }, rule.id), element('td', {}, verdict(rule.action)),
    element('td', {}, element('code', {}, rule.source)), element('td', {}, element('code', {}, rule.destination)),
    element('td', { class: 'soft' }, rule.dry_run ? 'only tried out' : '')));
  const fallback = (what, action) => element('tr', {}, element('td', { class: 'number soft' }, 'else'), element('td', {}, verdict(action)),
    element('td', { colspan: 3, class: 'soft' }, what));
  rows.push(fallback('within the mesh', mesh), fallback('from the mesh to elsewhere', egress));
  const left = allRules - rules.length;
  show(byId('rules'),
    element('p', { class: 'note' }, `The first rule that fits decides. Services without a mode of their own are ${mode}.${left ? ` ${left} more rules: murmesh policy list.` : ''}`),
    table(columns, element('tbody', {}, rows)));
  suggest(state);
  const now = JSON.stringify([state.policy, state.services.map((service) => [service.id, service.mode])]);
  if (asked && now !== rulesBefore) ask(state, ...asked);
  rulesBefore = now;
}

const verdict = (action) => (action === 'allow' ? well('allow') : tag('denied', 'deny'));

function suggest(state) {
  const named = state.services.filter((service) => service.named).map((service) => service.id);
  const workloads = state.flows.filter((flow) => flow.host && flow.workload).map((flow) => `host/${flow.host}/${flow.workload}`);
  const listeners = state.services.flatMap((service) => service.instances.map((instance) => `${instance.host}:${service.port}`));
  fill('sources', [...state.hosts.map((host) => host.node), ...named, ...workloads]);
  fill('destinations', [...named, ...listeners]);
}

// Browsers close a list that changes while it is open.
function fill(id, texts) {
  const wanted = [...new Set(texts)].slice(0, 1000);
  const list = byId(id);
  if ([...list.children].map((option) => option.value).join('\n') !== wanted.join('\n')) {
    list.replaceChildren(...wanted.map((value) => element('option', { value })));
  }
}

export async function ask(state, from, to) {
  asked = [from, to];
  const answer = await fetch(`/api/reach?from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`).catch(() => null);
  if (!answer) { show(byId('reached'), element('p', { class: 'verdict tone-denied' }, 'The server does not answer.')); return; }
  if (!answer.ok) { show(byId('reached'), element('p', { class: 'verdict tone-denied' }, await answer.text())); return; }
  const reached = await answer.json();
  show(byId('reached'), reached.map((one) => answered(state, one)));
}

function answered(state, { source, destination, action, rule, dry_run: dryRun }) {
  const allowed = action === 'allow';
  const found = state.policy.rules.find((other) => other.id === rule);
  const why = rule === null ? 'as no rule speaks of it' : `by rule ${rule}${found ? `: ${found.action} ${found.source} ${found.destination}` : ''}`;
  const service = state.services.find((one) => one.instances.some((instance) => `${instance.host}:${one.port}` === destination));
  const instance = service?.instances.find((one) => destination.startsWith(`${one.host}:`));
  const how = !allowed || !service ? null : service.mode === 'observe' ? 'in clear: the service is only observed' : 'encrypted';
  const state_ = allowed && instance && instance.state !== 'healthy' ? `The instance gets no new connections: ${instance.reason}.` : null;
  return element('p', { class: `verdict tone-${allowed ? 'encrypted' : 'denied'}` },
    verdict(action), element('span', {}, `${source} → ${destination}`), element('span', { class: 'soft' }, why),
    how ? element('span', { class: 'soft' }, how) : null, state_ ? element('span', {}, state_) : null,
    dryRun === null ? null : element('span', { class: 'soft' }, `rule ${dryRun}, which is only tried out, says otherwise`));
}
